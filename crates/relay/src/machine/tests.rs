use std::net::Ipv4Addr;

use bytes::Bytes;

use super::*;

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: Duration = Duration::from_secs(1);

/// A machine in virtual time, with the writers' side of the shell.
struct World {
    machine: Machine,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(Rates::default(), 1),
            now: Instant::now(),
        }
    }

    fn connect(&mut self, key: NodePublic) -> ClientId {
        self.machine.connect(key, SOURCE, true, self.now)
    }

    fn send(&mut self, from: ClientId, to: NodePublic, packet: impl AsRef<[u8]>) {
        self.machine.handle_packet(from, to, packet.as_ref(), self.now);
    }

    fn commands(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.machine.poll_command()).collect()
    }

    /// What a client's writer gets, until nothing is left.
    fn drain(&mut self, id: ClientId) -> Vec<Frame> {
        let mut all = BytesMut::new();
        loop {
            let before = all.len();
            self.machine.take(id, &mut all);
            if all.len() == before {
                return std::iter::from_fn(|| Frame::decode(&mut all).unwrap()).collect();
            }
        }
    }

    /// Lets time pass up to a client's timeout.
    fn beat(&mut self, id: ClientId) {
        self.now = self.machine.timeout(id).unwrap();
        self.machine.handle_timeout(id, self.now);
    }
}

fn key(byte: u8) -> NodePublic {
    NodePublic::from_bytes([byte; 32])
}

fn received(from: NodePublic, packet: impl Into<Bytes>) -> Frame {
    Frame::RecvPacket {
        from,
        packet: packet.into(),
    }
}

fn gone(peer: NodePublic, reason: PeerGoneReason) -> Frame {
    Frame::PeerGone { peer, reason }
}

/// A packet that looks like disco. Its last byte tells it from others.
fn disco_packet(last: u8) -> Vec<u8> {
    let mut packet = vec![0; 100];
    packet[..6].copy_from_slice(disco::MAGIC);
    packet[99] = last;
    packet
}

#[test]
fn packets_arrive_in_order_and_wake_once() {
    let mut world = World::new();
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    world.send(a, key(2), "one");
    world.send(a, key(2), "two");
    assert_eq!(world.commands(), [Command::Wake(b)]);
    assert_eq!(world.drain(b), [received(key(1), "one"), received(key(1), "two")]);
    world.send(a, key(2), "three");
    assert_eq!(world.commands(), [Command::Wake(b)]);
    assert_eq!(world.drain(b), [received(key(1), "three")]);
    let counters = world.machine.counters();
    assert_eq!((counters.packets_in, counters.bytes_in), (3, 11));
    assert_eq!((counters.packets_out, counters.bytes_out), (3, 11));
}

#[test]
fn a_writer_that_is_busy_is_not_woken_again() {
    let mut world = World::new();
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    world.send(a, key(2), "one");
    assert_eq!(world.commands(), [Command::Wake(b)]);
    world.machine.take(b, &mut BytesMut::new());
    world.send(a, key(2), "two");
    assert_eq!(world.commands(), []);
    assert_eq!(world.drain(b), [received(key(1), "two")]);
}

#[test]
fn a_full_queue_drops_the_oldest_and_disco_has_its_own() {
    let mut world = World::new();
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    world.send(a, key(2), disco_packet(7));
    // 37 bytes go around each packet.
    let fit = QUEUE_LEN / 1037;
    for number in 0..fit + 3 {
        let mut packet = vec![0; 1000];
        packet[..2].copy_from_slice(&(number as u16).to_be_bytes());
        world.send(a, key(2), packet);
    }
    let number = |frame: &Frame| match frame {
        Frame::RecvPacket { packet, .. } => u16::from_be_bytes([packet[0], packet[1]]) as usize,
        other => panic!("{other:?}"),
    };
    assert_eq!(world.machine.counters().dropped_full, 3);
    let frames = world.drain(b);
    assert_eq!(frames.len(), 1 + fit);
    assert_eq!(frames[0], received(key(1), disco_packet(7)));
    let numbers: Vec<_> = frames[1..].iter().map(number).collect();
    assert_eq!(numbers, (3..fit + 3).collect::<Vec<_>>());

    let fit = DISCO_QUEUE_LEN / 137;
    for number in 0..=fit {
        world.send(a, key(2), disco_packet(number as u8));
    }
    assert_eq!(world.drain(b)[0], received(key(1), disco_packet(1)));
    assert_eq!(world.machine.queued, 0);
}

#[test]
fn queues_are_short_while_much_waits_for_all() {
    let mut world = World::new();
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    world.machine.queued = MAX_QUEUED;
    for _ in 0..100 {
        world.send(a, key(2), vec![0; 1000]);
    }
    let short = SHORT_QUEUE_LEN / 1037;
    assert_eq!(world.drain(b).len(), short);
    assert_eq!(world.machine.queued, MAX_QUEUED);
    // One packet always fits.
    world.machine.queued += 1;
    world.send(a, key(2), vec![0; 64 * 1024]);
    assert_eq!(world.drain(b).len(), 1);
}

#[test]
fn what_waits_for_a_client_that_leaves_is_not_counted_any_more() {
    let mut world = World::new();
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    world.send(a, key(2), "data");
    world.send(a, key(2), disco_packet(1));
    assert_ne!(world.machine.queued, 0);
    world.machine.disconnect(b);
    assert_eq!((world.machine.queued, world.machine.sources.len()), (0, 1));
    world.machine.disconnect(a);
    assert!(world.machine.sources.is_empty());
}

#[test]
fn a_packet_takes_the_way_of_the_one_before_only_while_that_is_there() {
    let mut world = World::new();
    let (a, old) = (world.connect(key(1)), world.connect(key(2)));
    world.send(a, key(2), "one");
    world.drain(old);
    world.machine.disconnect(old);
    world.send(a, key(2), "two");
    let new = world.connect(key(2));
    world.send(a, key(2), "three");
    assert_eq!(world.drain(new), [received(key(1), "three")]);
    assert_eq!(world.machine.counters().dropped_absent, 1);
}

#[test]
fn who_sends_more_than_its_rate_has_to_wait() {
    let rate = |bytes_per_second| {
        Some(Rate {
            bytes_per_second,
            burst: 1000,
        })
    };
    let rates = Rates {
        client: rate(1000),
        source: rate(1500),
    };
    let mut world = World::new();
    world.machine = Machine::new(rates, 1);
    let (a, b) = (world.connect(key(1)), world.connect(key(2)));
    let start = world.now;
    world.send(a, key(2), vec![0; 1000]);
    assert_eq!(world.machine.paced(a, start), None, "the burst");
    world.send(a, key(2), vec![0; 2000]);
    assert_eq!(world.machine.paced(a, start), Some(start + 2 * SECOND));
    // The source waits until 3000 bytes went at 1500 a second, less the burst.
    let of_source = world.machine.paced(b, start).unwrap() - start;
    assert!((SECOND..2 * SECOND).contains(&of_source), "{of_source:?}");
    world.now += 2 * SECOND;
    assert_eq!(world.machine.paced(a, world.now), None);
    assert_eq!(world.machine.counters().paced, 2);
}

#[test]
fn an_absent_peer_is_told_for_disco_only_and_not_too_often() {
    let mut world = World::new();
    let a = world.connect(key(1));
    world.send(a, key(9), "data");
    assert_eq!(world.drain(a), []);
    for _ in 0..10 {
        world.send(a, key(9), disco_packet(0));
    }
    assert_eq!(world.drain(a), vec![gone(key(9), PeerGoneReason::NotHere); 3]);
    assert_eq!(world.machine.counters().dropped_absent, 11);

    world.now += SECOND;
    world.send(a, key(9), disco_packet(0));
    world.send(a, key(9), disco_packet(0));
    assert_eq!(world.drain(a).len(), 1);
    world.now += 60 * SECOND;
    for _ in 0..10 {
        world.send(a, key(9), disco_packet(0));
    }
    assert_eq!(world.drain(a).len(), 3);
}

#[test]
fn those_who_heard_from_a_client_are_told_when_it_leaves() {
    let mut world = World::new();
    let (a, b, c) = (
        world.connect(key(1)),
        world.connect(key(2)),
        world.connect(key(3)),
    );
    world.send(a, key(2), "hi");
    world.drain(b);
    world.commands();
    world.machine.disconnect(a);
    assert_eq!(world.commands(), [Command::Wake(b)]);
    assert_eq!(world.drain(b), [gone(key(1), PeerGoneReason::Disconnected)]);
    assert_eq!(world.drain(c), []);
    assert_eq!(world.machine.len(), 2);
    // What the shell does late changes nothing.
    world.machine.disconnect(a);
    world.send(a, key(2), "late");
    assert_eq!(world.drain(b), []);
}

#[test]
fn the_newest_connection_of_a_node_wins() {
    let mut world = World::new();
    let (old, b) = (world.connect(key(1)), world.connect(key(2)));
    world.send(old, key(2), "hi");
    world.drain(b);
    world.commands();
    let new = world.connect(key(1));
    assert_eq!(world.commands(), [Command::Close(old, CloseReason::Replaced)]);
    world.machine.disconnect(old);
    world.send(b, key(1), "answer");
    assert_eq!(world.commands(), [Command::Wake(new)]);
    assert_eq!(world.drain(new), [received(key(2), "answer")]);
    assert_eq!(world.drain(b), [], "the node was never gone");
    assert_eq!((world.machine.len(), world.machine.counters().replaced), (2, 1));
}

#[test]
fn pings_are_answered_one_at_a_time() {
    let mut world = World::new();
    let a = world.connect(key(1));
    world.machine.handle_frame(a, &Frame::Ping([1; 8]), world.now);
    world.machine.handle_frame(a, &Frame::Ping([2; 8]), world.now);
    assert_eq!(world.drain(a), [Frame::Pong([1; 8])]);
    world.machine.handle_frame(a, &Frame::Ping([3; 8]), world.now);
    assert_eq!(world.drain(a), [Frame::Pong([3; 8])]);
}

#[test]
fn a_client_hears_from_the_relay_each_minute() {
    let mut world = World::new();
    let start = world.now;
    let old = world.machine.connect(key(1), SOURCE, false, start);
    world.beat(old);
    let first = world.now - start;
    assert!((BEAT..BEAT + BEAT_JITTER).contains(&first), "{first:?}");
    assert_eq!(world.drain(old), [Frame::KeepAlive]);
    world.machine.handle_timeout(old, world.now);
    assert_eq!(world.drain(old), [], "the next beat has not come");
    // A client that does not answer pings may be silent for ever.
    for _ in 0..10 {
        world.beat(old);
    }
    assert_eq!(world.machine.len(), 1);
}

#[test]
fn a_client_that_answers_pings_must_do_so() {
    let mut world = World::new();
    let a = world.connect(key(1));
    for _ in 0..10 {
        world.beat(a);
        let frames = world.drain(a);
        let [Frame::Ping(data)] = frames[..] else {
            panic!("no ping: {frames:?}")
        };
        world.machine.handle_frame(a, &Frame::Pong(data), world.now);
    }
    world.commands();
    world.beat(a);
    world.beat(a);
    assert_eq!(world.commands(), [Command::Wake(a)]);
    world.beat(a);
    assert_eq!(world.commands(), [Command::Close(a, CloseReason::Silent)]);
    assert!(world.machine.is_empty());
    assert_eq!(world.machine.timeout(a), None);
}

#[test]
fn homes_are_counted() {
    let mut world = World::new();
    let (a, _) = (world.connect(key(1)), world.connect(key(2)));
    world
        .machine
        .handle_frame(a, &Frame::NotePreferred(true), world.now);
    assert_eq!(world.machine.homes(), 1);
    world
        .machine
        .handle_frame(a, &Frame::NotePreferred(false), world.now);
    assert_eq!(world.machine.homes(), 0);
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    let mut world = World::new();
    let sleeper = world.connect(key(1));
    for number in 0..200u8 {
        let peer = world.connect(key(2 + number % 100));
        world.send(peer, key(1), vec![number]);
        world.machine.disconnect(peer);
        world
            .machine
            .handle_frame(sleeper, &Frame::Ping([number; 8]), world.now);
    }
    assert!(world.drain(sleeper).len() <= CONTROL_QUEUE_LEN + (QUEUE_LEN + DISCO_QUEUE_LEN) / 38);
}
