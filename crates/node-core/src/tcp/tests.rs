//! Two connections on a link that loses, delays, reorders and repeats by a seed, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use super::FlowKey;
use super::conn::{Conn, State};
use super::segment::{Options, Segment};
use super::seq::Seq;
use crate::budget::MemoryBudget;
use crate::event::CloseReason;
use crate::packet::{Parsed, tcp_flags};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What the link does to packets, out of a thousand.
#[derive(Clone, Copy, Debug)]
struct Link {
    delay: Duration,
    jitter: Duration,
    loss: u32,
    repeat: u32,
    /// Bytes per second; what waits for longer than 50 ms is dropped.
    rate: Option<u64>,
}

const CLEAN: Link = Link {
    delay: Duration::from_millis(10),
    jitter: Duration::ZERO,
    loss: 0,
    repeat: 0,
    rate: None,
};

/// When a packet arrives, its number, at which side, and its bytes.
type Flying = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Lab {
    now: Instant,
    link: Link,
    rng: ChaCha20Rng,
    budget: Arc<MemoryBudget>,
    sides: [Conn; 2],
    flying: BinaryHeap<Flying>,
    order: u64,
    /// Until when the link is busy, each way.
    busy: [Instant; 2],
    /// Bytes of data that each side sent.
    sent: [usize; 2],
    out: Vec<u8>,
}

fn keys() -> [FlowKey; 2] {
    let (a, b) = (
        "100.64.0.1:4000".parse().unwrap(),
        "100.64.0.2:80".parse().unwrap(),
    );
    [FlowKey { local: a, remote: b }, FlowKey { local: b, remote: a }]
}

impl Lab {
    /// Two sides whose handshake is done.
    fn new(link: Link, seed: u64) -> Self {
        let mut lab = Self::closed(link, seed, 64 << 20);
        lab.until(60 * SECOND, |lab| {
            lab.sides.iter().all(|side| side.state == State::Established)
        });
        lab.link = link;
        lab
    }

    /// One side asks; the other is made of its SYN.
    fn closed(link: Link, seed: u64, memory: usize) -> Self {
        let (now, budget) = (Instant::now(), MemoryBudget::new(memory));
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let [here, there] = keys();
        let mut client = Conn::open(here, Seq(rng.next_u32()), &budget);
        let mut out = Vec::new();
        assert!(client.emit(&mut out, now));
        let syn = Parsed::parse(&out).unwrap();
        let segment = Segment::parse(&out, &syn).unwrap();
        let now = now + link.delay;
        let server = Conn::accept(there, Seq(rng.next_u32()), &segment, &budget);
        Self {
            now,
            link,
            rng,
            budget,
            sides: [client, server],
            flying: BinaryHeap::new(),
            order: 0,
            busy: [now; 2],
            sent: [0; 2],
            out,
        }
    }

    fn drain(&mut self, side: usize) {
        let conn = &mut self.sides[side];
        conn.handle_timeout(self.now);
        while conn.emit(&mut self.out, self.now) {
            let parsed = Parsed::parse(&self.out).unwrap();
            let segment = Segment::parse(&self.out, &parsed).unwrap();
            self.sent[side] += segment.payload.len();
            let mut copies = 1 + u32::from(self.rng.next_u32() % 1000 < self.link.repeat);
            if self.rng.next_u32() % 1000 < self.link.loss {
                copies = 0;
            }
            let mut leaves = self.now;
            if let Some(rate) = self.link.rate {
                let busy = self.busy[side].max(self.now);
                if busy - self.now > 50 * MS {
                    continue;
                }
                leaves = busy + Duration::from_nanos(self.out.len() as u64 * 1_000_000_000 / rate);
                self.busy[side] = leaves;
            }
            for _ in 0..copies {
                let jitter = match self.link.jitter.as_micros() as u64 {
                    0 => 0,
                    most => self.rng.next_u64() % most,
                };
                self.order += 1;
                let at = leaves + self.link.delay + Duration::from_micros(jitter);
                self.flying
                    .push(Reverse((at, self.order, 1 - side, self.out.clone())));
            }
        }
    }

    fn deliver(&mut self, side: usize, packet: &[u8]) {
        let parsed = Parsed::parse(packet).unwrap();
        let segment = Segment::parse(packet, &parsed).unwrap();
        self.sides[side].ingress(&segment, self.now);
    }

    /// Goes on to the next thing that happens.
    fn step(&mut self) {
        self.drain(0);
        self.drain(1);
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        let deadlines = self.sides.iter().filter_map(Conn::deadline);
        let next = deadlines.chain(arrival).min();
        self.now = next.map_or(self.now + MS, |next| next.max(self.now));
        while self
            .flying
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= self.now)
        {
            if let Some(Reverse((_, _, side, packet))) = self.flying.pop() {
                self.deliver(side, &packet);
            }
        }
    }

    fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now - start < limit,
                "not done in {limit:?}: {:?}",
                self.sides
            );
            self.step();
        }
        self.now - start
    }

    /// Sends so many bytes to the other side, which reads them at once; how long it takes.
    fn transfer(&mut self, from: usize, length: usize) -> Duration {
        let content = move |at: usize| (at * 31 + at / 253) as u8;
        let (mut written, mut read) = (0, 0);
        let mut room = vec![0; 64 * 1024];
        self.until(3600 * SECOND, move |lab| {
            while written < length {
                let chunk: Vec<u8> = (written..length.min(written + 16_384)).map(content).collect();
                let taken = lab.sides[from].write(&chunk);
                written += taken;
                if taken < chunk.len() {
                    break;
                }
            }
            loop {
                let got = lab.sides[1 - from].read(&mut room);
                if got == 0 {
                    break;
                }
                for byte in &room[..got] {
                    assert_eq!(*byte, content(read));
                    read += 1;
                }
            }
            read == length
        })
    }

    fn close(&mut self) {
        for side in &mut self.sides {
            side.close();
        }
        self.until(120 * SECOND, |lab| {
            lab.sides
                .iter()
                .all(|side| matches!(side.state, State::TimeWait | State::Closed))
        });
    }

    /// A segment of the client that the server has not seen, by itself.
    fn forged(&self, seq: Seq, ack: Seq, flags: u8) -> Vec<u8> {
        let outgoing = super::segment::Outgoing {
            seq,
            ack: Some(ack),
            flags,
            window: 1000,
            options: Options::default(),
        };
        let mut out = Vec::new();
        let key = self.sides[0].key;
        outgoing.write(key.local, key.remote, 0, &mut out, |_| {});
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_byte_arrives_once_whatever_the_link_does(
        seed: u64,
        loss in 0u32..200,
        repeat in 0u32..200,
        jitter in 0u64..30,
        up in 0usize..60_000,
        down in 0usize..60_000,
    ) {
        let link = Link { loss, repeat, jitter: MS * jitter as u32, ..CLEAN };
        let mut lab = Lab::new(link, seed);
        lab.transfer(0, up);
        lab.transfer(1, down);
        lab.close();
        prop_assert!(lab.sides.iter().all(|side| side.ended.is_none()));
    }
}

/// Goodput in KiB per second.
fn goodput(link: Link, length: usize, seed: u64) -> (usize, Lab) {
    let mut lab = Lab::new(link, seed);
    let took = lab.transfer(0, length);
    ((length as f64 / 1024.0 / took.as_secs_f64()) as usize, lab)
}

#[test]
fn windows_grow_to_fill_the_path() {
    let (speed, lab) = goodput(CLEAN, 64 << 20, 1);
    // A megabyte each 20 ms is the largest window.
    assert!(speed > 40_000, "{speed} KiB/s");
    assert_eq!(lab.sent[0], 64 << 20, "nothing was sent twice");
    let mut lab = lab;
    lab.until(SECOND, |lab| lab.budget.used() == 0);
}

#[test]
fn losses_cost_speed_but_no_stalls() {
    for (loss, least) in [(1, 2_000), (10, 600), (50, 100)] {
        for seed in 0..3 {
            let (speed, lab) = goodput(Link { loss, ..CLEAN }, 4 << 20, seed);
            assert!(speed > least, "{speed} KiB/s at a loss of {loss} in a thousand");
            let extra = (lab.sent[0] - (4 << 20)) * 1000 / (4 << 20);
            assert!(
                extra < loss as usize * 3 / 2 + 2,
                "{extra} in a thousand sent again at a loss of {loss}"
            );
        }
    }
}

#[test]
fn packets_out_of_order_are_no_losses() {
    let link = Link {
        jitter: 3 * MS,
        ..CLEAN
    };
    let (speed, lab) = goodput(link, 16 << 20, 4);
    assert!(speed > 15_000, "{speed} KiB/s");
    let extra = (lab.sent[0] - (16 << 20)) * 100 / (16 << 20);
    assert!(extra <= 2, "{extra} % sent again");
}

#[test]
fn a_narrow_link_is_filled() {
    let link = Link {
        rate: Some(2 << 20),
        ..CLEAN
    };
    let (speed, _) = goodput(link, 16 << 20, 5);
    assert!(speed > 1500, "{speed} KiB/s of 2048");
}

#[test]
fn a_transfer_goes_on_within_a_second_of_the_end_of_an_outage() {
    for outage in [1, 5, 20, 55] {
        let mut lab = Lab::new(CLEAN, outage);
        lab.sides[0].write(&[1; 60_000]);
        lab.drain(0);
        lab.link.loss = 1000;
        lab.flying.clear();
        let end = lab.now + SECOND * outage as u32;
        lab.until(60 * SECOND, |lab| lab.now >= end);
        lab.link.loss = 0;
        let mut room = vec![0; 64 * 1024];
        let took = lab.until(60 * SECOND, |lab| lab.sides[1].read(&mut room) > 0);
        assert!(took <= SECOND + 20 * MS, "{took:?} after {outage} s");
    }
}

#[test]
fn a_sign_of_life_ends_the_wait() {
    let mut lab = Lab::new(CLEAN, 7);
    lab.sides[0].write(b"x");
    lab.drain(0);
    lab.link.loss = 1000;
    lab.flying.clear();
    lab.until(60 * SECOND, |lab| lab.sides[0].send.rounds == 4);
    lab.drain(0);
    lab.now += SECOND / 2;
    lab.link.loss = 0;
    let now = lab.now;
    let before = lab.sides[0].deadline().unwrap();
    lab.sides[0].send.poke(now);
    assert!(lab.sides[0].deadline().unwrap() < before);
}

#[test]
fn a_closed_window_opens_again_even_if_the_news_is_lost() {
    let mut lab = Lab::new(CLEAN, 8);
    let start = lab.now;
    let bytes = vec![7; 200_000];
    let mut written = 0;
    lab.until(120 * SECOND, |lab| {
        written += lab.sides[0].write(&bytes[written..]);
        lab.now - start > 60 * SECOND
    });
    let held = lab.sides[1].recv.buffer.ready();
    assert!(
        (60_000..=70_000).contains(&held),
        "{held} bytes in a window of 64 KiB"
    );
    // The reader takes all of it, and the update is lost.
    let mut room = vec![0; 200_000];
    let mut read = lab.sides[1].read(&mut room);
    lab.link.loss = 1000;
    lab.drain(1);
    lab.link.loss = 0;
    lab.until(30 * SECOND, |lab| {
        written += lab.sides[0].write(&bytes[written..]);
        read += lab.sides[1].read(&mut room);
        read == bytes.len()
    });
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let mut lab = Lab::closed(CLEAN, 9, 128 * 1024);
    lab.until(SECOND, |lab| {
        lab.sides.iter().all(|side| side.state == State::Established)
    });
    let start = lab.now;
    lab.until(60 * SECOND, |lab| {
        lab.sides[0].write(&[1; 50_000]);
        lab.sides[1].write(&[1; 50_000]);
        lab.now - start > 20 * SECOND
    });
    assert!(lab.budget.used() <= 128 * 1024);
    let mut room = vec![0; 64 * 1024];
    lab.until(60 * SECOND, |lab| {
        for side in &mut lab.sides {
            side.read(&mut room);
        }
        lab.budget.used() == 0
    });
}

#[test]
fn both_sides_may_close_or_ask_at_once() {
    let mut lab = Lab::new(CLEAN, 10);
    lab.close();
    assert!(lab.sides.iter().all(|side| side.state == State::TimeWait));

    let mut lab = Lab::closed(CLEAN, 11, 1 << 20);
    let [_, there] = keys();
    lab.sides[1] = Conn::open(there, Seq(99), &lab.budget);
    lab.sides[0] = Conn::open(keys()[0], Seq(u32::MAX - 1), &lab.budget);
    lab.until(10 * SECOND, |lab| {
        lab.sides.iter().all(|side| side.state == State::Established)
    });
    lab.transfer(0, 100_000);
    lab.transfer(1, 100_000);
}

#[test]
fn half_of_a_connection_goes_on() {
    let mut lab = Lab::new(CLEAN, 12);
    lab.sides[0].close();
    lab.until(SECOND, |lab| lab.sides[0].state == State::FinWait2);
    assert_eq!(lab.sides[1].state, State::CloseWait);
    lab.transfer(1, 300_000);
    lab.sides[1].close();
    lab.until(SECOND, |lab| lab.sides[1].state == State::Closed);
    assert_eq!((lab.sides[0].state, lab.sides[1].ended), (State::TimeWait, None));
}

/// RFC 5961: who does not see the connection can neither end nor change it.
#[test]
fn forged_segments_are_answered_and_change_nothing() {
    let mut lab = Lab::new(CLEAN, 13);
    lab.transfer(0, 10_000);
    let settled = lab.now + SECOND;
    lab.until(2 * SECOND, |lab| lab.now >= settled);
    let (next, una) = (lab.sides[1].recv.next, lab.sides[1].send.una);
    for (seq, ack, flags) in [
        (next + 100, una, tcp_flags::RST),
        (next, una, tcp_flags::SYN),
        (next, una + 100, 0),
        (next, una.before(1 << 20), 0),
        (next + (1 << 25), una, 0),
    ] {
        lab.now += SECOND;
        let packet = lab.forged(seq, ack, flags);
        lab.deliver(1, &packet);
        assert_eq!(lab.sides[1].state, State::Established);
        let now = lab.now;
        let mut out = Vec::new();
        assert!(lab.sides[1].emit(&mut out, now), "a challenge");
        let parsed = Parsed::parse(&out).unwrap();
        assert_eq!(Segment::parse(&out, &parsed).unwrap().ack, next);
        // Few challenges, however many forgeries.
        lab.deliver(1, &packet);
        assert!(!lab.sides[1].emit(&mut out, now));
    }
    lab.transfer(0, 10_000);
    let packet = lab.forged(lab.sides[1].recv.next, una, tcp_flags::RST);
    lab.deliver(1, &packet);
    assert_eq!(lab.sides[1].ended, Some(CloseReason::Reset));
}

#[test]
fn a_dead_peer_is_given_up_and_a_living_one_kept() {
    let mut lab = Lab::new(CLEAN, 14);
    let end = lab.now + SECOND * 3600;
    lab.until(2 * 3600 * SECOND, |lab| lab.now >= end);
    assert!(lab.sides.iter().all(|side| side.state == State::Established));
    lab.link.loss = 1000;
    let took = lab.until(600 * SECOND, |lab| lab.sides[0].state == State::Closed);
    assert_eq!(lab.sides[0].ended, Some(CloseReason::TimedOut));
    assert!(took <= 5 * 60 * SECOND + SECOND);
}

#[test]
fn a_smaller_link_on_the_way_gets_smaller_segments() {
    let mut lab = Lab::new(CLEAN, 15);
    lab.sides[0].write(&[1; 20_000]);
    lab.drain(0);
    lab.flying.clear();
    lab.sides[0].lower_mtu(600);
    lab.drain(0);
    assert!(!lab.flying.is_empty());
    assert!(lab.flying.iter().all(|Reverse((.., packet))| packet.len() <= 601));
    let mut room = vec![0; 64 * 1024];
    let mut read = 0;
    lab.until(10 * SECOND, |lab| {
        read += lab.sides[1].read(&mut room);
        read == 20_000
    });
}

#[test]
fn an_idle_connection_is_small() {
    let size = size_of::<super::flow::Flow>();
    assert!(size <= 1024, "{size} bytes");
}
