//! TCP through the tunnel, between whole nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::net::{Net, Weather, address, address6};
use sha2::{Digest, Sha256};
use tailwharf_node_core::{CloseReason, ConnError, ConnId, Event, Io, ListenerId};

const MINUTE: Duration = Duration::from_secs(60);

/// Data without a period that a lost or doubled piece could hide behind.
fn data(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt | 1;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33).to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// One side of a transfer.
struct Side {
    conn: ConnId,
    to_send: Vec<u8>,
    sent: usize,
    shut: bool,
    hash: Sha256,
    received: usize,
    ended: bool,
}

impl Side {
    fn new(conn: ConnId, to_send: Vec<u8>) -> Self {
        Self {
            conn,
            to_send,
            sent: 0,
            shut: false,
            hash: Sha256::new(),
            received: 0,
            ended: false,
        }
    }

    /// Writes and reads what can be, and shuts down at the end.
    fn pump(&mut self, net: &mut Net, id: i64) {
        let core = &mut net.host(id).core;
        while self.sent < self.to_send.len() {
            match core.write(self.conn, &self.to_send[self.sent..]).unwrap() {
                Io::Ready(length) => self.sent += length,
                Io::Pending => break,
            }
        }
        if self.sent == self.to_send.len() && !self.shut {
            core.shutdown_write(self.conn).unwrap();
            self.shut = true;
        }
        let mut buffer = [0; 4096];
        while !self.ended {
            match core.read(self.conn, &mut buffer).unwrap() {
                Io::Ready(0) => self.ended = true,
                Io::Ready(length) => {
                    self.hash.update(&buffer[..length]);
                    self.received += length;
                }
                Io::Pending => break,
            }
        }
    }

    fn is_done(&self) -> bool {
        self.shut && self.ended
    }
}

fn listen(net: &mut Net, id: i64, port: u16) -> ListenerId {
    net.host(id).core.listen_tcp(None, port, 128).unwrap()
}

/// A connection from node 1 to node 2, both ends.
fn connect(net: &mut Net, listener: ListenerId, to: IpAddr, port: u16) -> (ConnId, ConnId) {
    let conn = net.host(1).core.connect_tcp(SocketAddr::new(to, port)).unwrap();
    let mut accepted = None;
    let mut connected = false;
    net.run_until(MINUTE, "connect", |net| {
        connected |= !net
            .host(1)
            .take(|event| matches!(event, Event::Connected(id) if *id == conn).then_some(()))
            .is_empty();
        accepted = accepted.or_else(|| net.host(2).core.accept(listener));
        connected && accepted.is_some()
    });
    (conn, accepted.unwrap().conn)
}

fn transfer(weather: Weather, seed: u64, to: IpAddr, length: usize) -> Net {
    let mut net = Net::acquainted(2, weather, seed);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, to, 80);
    let (up, down) = (data(length, seed + 1), data(length / 2, seed + 2));
    let mut client = Side::new(client, up.clone());
    let mut server = Side::new(server, down.clone());
    net.run_until(10 * MINUTE, "transfer", |net| {
        client.pump(net, 1);
        server.pump(net, 2);
        client.is_done() && server.is_done()
    });
    assert_eq!((server.received, client.received), (up.len(), down.len()));
    assert_eq!(server.hash.finalize(), Sha256::digest(&up));
    assert_eq!(client.hash.finalize(), Sha256::digest(&down));
    net.host(1).core.close(client.conn);
    net.host(2).core.close(server.conn);
    net.run(MINUTE);
    assert_eq!(
        (
            net.host(1).core.connection_count(),
            net.host(2).core.connection_count()
        ),
        (0, 0)
    );
    assert_eq!(net.budget.used(), 0);
    net
}

#[test]
fn megabytes_both_ways_in_fair_weather() {
    let net = transfer(Weather::FAIR, 1, address(2), 4 << 20);
    // A tenth more packets than segments is what acknowledgements and the handshake may cost.
    let segments = (6 << 20) / 1240;
    assert!(
        net.carried < segments * 2,
        "{} packets for {segments} segments",
        net.carried
    );
}

#[test]
fn what_an_open_window_takes_leaves_in_full_batches() {
    let mut net = Net::acquainted(2, Weather::FAIR, 40);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    let bytes = data(1 << 20, 41);
    let (mut sent, mut received) = (0, 0);
    net.run_until(MINUTE, "the window grows", |net| {
        while let Io::Ready(length @ 1..) = net.host(1).core.write(client, &bytes[sent..]).unwrap() {
            sent += length;
        }
        let mut room = [0; 4096];
        while let Io::Ready(length @ 1..) = net.host(2).core.read(server, &mut room).unwrap() {
            received += length;
        }
        received == bytes.len()
    });
    net.run(Duration::from_secs(1));
    net.largest_batch = 0;
    net.host(1).core.write(client, &bytes[..200_000]).unwrap();
    net.drain();
    // One system call takes 65,487 bytes: 49 packets of 1,312.
    assert_eq!(net.largest_batch, 49);
}

#[test]
fn megabytes_both_ways_in_a_storm() {
    for seed in 10..14 {
        transfer(Weather::STORM, seed, address(2), 1 << 20);
    }
}

/// So many losses that both sides often wait for each other at the same time.
#[test]
fn small_exchanges_in_a_hurricane() {
    let hurricane = Weather {
        loss: 150,
        ..Weather::STORM
    };
    for seed in 300..330 {
        transfer(hurricane, seed, address(2), 20_000);
    }
}

#[test]
fn ipv6_in_a_storm() {
    transfer(Weather::STORM, 20, address6(2), 1 << 20);
}

#[test]
fn many_connections_at_once() {
    let mut net = Net::acquainted(2, Weather::STORM, 30);
    let listener = listen(&mut net, 2, 80);
    let count = 100;
    let to = SocketAddr::new(address(2), 80);
    let mut clients: Vec<Side> = (0..count)
        .map(|number| {
            Side::new(
                net.host(1).core.connect_tcp(to).unwrap(),
                data(3000 + number * 100, number as u64),
            )
        })
        .collect();
    let mut servers: Vec<Side> = Vec::new();
    net.run_until(10 * MINUTE, "echo", |net| {
        while let Some(accepted) = net.host(2).core.accept(listener) {
            servers.push(Side::new(accepted.conn, Vec::new()));
        }
        for side in &mut clients {
            side.pump(net, 1);
        }
        for side in &mut servers {
            // An echo: what comes in is what goes out, and the end follows the end.
            let mut buffer = [0; 2048];
            while let Io::Ready(length @ 1..) = net
                .host(2)
                .core
                .read(side.conn, &mut buffer)
                .unwrap_or(Io::Pending)
            {
                side.to_send.extend_from_slice(&buffer[..length]);
            }
            while side.sent < side.to_send.len() {
                let Ok(Io::Ready(length)) = net.host(2).core.write(side.conn, &side.to_send[side.sent..])
                else {
                    break;
                };
                side.sent += length;
            }
            if !side.shut
                && side.sent == side.to_send.len()
                && matches!(net.host(2).core.read(side.conn, &mut buffer), Ok(Io::Ready(0)))
            {
                net.host(2).core.shutdown_write(side.conn).unwrap();
                side.shut = true;
            }
        }
        clients.iter().all(Side::is_done)
    });
    assert_eq!(servers.len(), count);
    for client in clients {
        assert_eq!(client.hash.finalize(), Sha256::digest(&client.to_send));
    }
}

#[test]
fn half_close_lets_the_answer_through() {
    let mut net = Net::new(2, Weather::FAIR, 40);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    net.host(1).core.write(client, b"question").unwrap();
    net.host(1).core.shutdown_write(client).unwrap();
    assert_eq!(net.host(1).core.write(client, b"more"), Err(ConnError::ShutDown));
    let mut buffer = [0; 64];
    net.run_until(MINUTE, "question", |net| {
        net.host(2).core.read(server, &mut buffer) == Ok(Io::Ready(8))
    });
    net.run_until(MINUTE, "end", |net| {
        net.host(2).core.read(server, &mut buffer) == Ok(Io::Ready(0))
    });
    net.run(MINUTE);
    net.host(2).core.write(server, b"answer").unwrap();
    net.host(2).core.close(server);
    net.run_until(MINUTE, "answer", |net| {
        net.host(1).core.read(client, &mut buffer) == Ok(Io::Ready(6))
    });
    net.run_until(MINUTE, "end", |net| {
        net.host(1).core.read(client, &mut buffer) == Ok(Io::Ready(0))
    });
    net.host(1).core.close(client);
    net.run(MINUTE);
    assert_eq!(
        (
            net.host(1).core.connection_count(),
            net.host(2).core.connection_count()
        ),
        (0, 0)
    );
}

#[test]
fn data_is_readable_long_after_both_sides_closed() {
    let mut net = Net::new(2, Weather::FAIR, 45);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    net.host(1).core.shutdown_write(client).unwrap();
    net.run(Duration::from_secs(1));
    net.host(2).core.write(server, b"late reader").unwrap();
    net.host(2).core.shutdown_write(server).unwrap();
    net.run(5 * MINUTE);
    let mut buffer = [0; 64];
    assert_eq!(net.host(1).core.read(client, &mut buffer), Ok(Io::Ready(11)));
    assert_eq!(net.host(1).core.read(client, &mut buffer), Ok(Io::Ready(0)));
    assert!(
        net.host(1)
            .take(|event| matches!(event, Event::Closed { .. }).then_some(()))
            .is_empty()
    );
}

fn closed(net: &mut Net, id: i64, conn: ConnId) -> Option<CloseReason> {
    net.host(id)
        .take(|event| match event {
            Event::Closed { conn: closed, reason } if *closed == conn => Some(*reason),
            _ => None,
        })
        .pop()
}

#[test]
fn a_reset_ends_the_other_side() {
    let mut net = Net::new(2, Weather::FAIR, 50);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    let mut buffer = [0; 8];
    assert_eq!(net.host(1).core.read(client, &mut buffer), Ok(Io::Pending));
    net.host(2).core.abort(server);
    net.run_until(MINUTE, "reset", |net| {
        closed(net, 1, client) == Some(CloseReason::Reset)
    });
    let readable = net
        .host(1)
        .take(|event| matches!(event, Event::Readable(conn) if *conn == client).then_some(()));
    assert_eq!(readable.len(), 1);
    assert_eq!(
        net.host(1).core.read(client, &mut buffer),
        Err(CloseReason::Reset.into())
    );
    assert_eq!(
        net.host(1).core.write(client, b"x"),
        Err(CloseReason::Reset.into())
    );
    net.host(1).core.close(client);
    assert_eq!(
        net.host(1).core.read(client, &mut buffer),
        Err(ConnError::NotOpen)
    );
    assert_eq!(
        (
            net.host(1).core.connection_count(),
            net.host(2).core.connection_count()
        ),
        (0, 0)
    );
}

#[test]
fn data_left_unread_resets() {
    let mut net = Net::new(2, Weather::FAIR, 55);
    let listener = listen(&mut net, 2, 80);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    net.host(1).core.write(client, b"nobody reads this").unwrap();
    net.run(Duration::from_secs(1));
    net.host(2).core.close(server);
    net.run_until(MINUTE, "reset", |net| {
        closed(net, 1, client) == Some(CloseReason::Reset)
    });
}

#[test]
fn a_port_where_nothing_listens_refuses() {
    let mut net = Net::new(2, Weather::FAIR, 60);
    let conn = net
        .host(1)
        .core
        .connect_tcp(SocketAddr::new(address(2), 81))
        .unwrap();
    net.run_until(MINUTE, "refusal", |net| {
        closed(net, 1, conn) == Some(CloseReason::Refused)
    });
}

#[test]
fn a_silent_peer_times_out() {
    let mut net = Net::new(
        2,
        Weather {
            loss: 1000,
            ..Weather::FAIR
        },
        65,
    );
    let conn = net
        .host(1)
        .core
        .connect_tcp(SocketAddr::new(address(2), 80))
        .unwrap();
    net.run_until(2 * MINUTE, "timeout", |net| {
        closed(net, 1, conn) == Some(CloseReason::TimedOut)
    });
    net.host(1).core.close(conn);
    assert_eq!(net.budget.used(), 0);
}

#[test]
fn a_lost_peer_is_found_out_by_keep_alives() {
    let mut net = Net::new(2, Weather::FAIR, 66);
    let listener = listen(&mut net, 2, 80);
    let (client, _server) = connect(&mut net, listener, address(2), 80);
    net.run(20 * MINUTE);
    assert_eq!(
        closed(&mut net, 1, client),
        None,
        "an idle connection stays while the peer answers"
    );
    net.weather.loss = 1000;
    net.run_until(10 * MINUTE, "timeout", |net| {
        closed(net, 1, client) == Some(CloseReason::TimedOut)
    });
}

#[test]
fn a_backlog_is_bounded_and_drains() {
    let mut net = Net::new(2, Weather::FAIR, 70);
    let listener = net.host(2).core.listen_tcp(None, 80, 2).unwrap();
    let to = SocketAddr::new(address(2), 80);
    let conns: Vec<ConnId> = (0..5)
        .map(|_| net.host(1).core.connect_tcp(to).unwrap())
        .collect();
    net.run(Duration::from_millis(900));
    let mut accepted = 0;
    net.run_until(MINUTE, "all connections", |net| {
        accepted += usize::from(net.host(2).core.accept(listener).is_some());
        accepted == conns.len()
    });
}

#[test]
fn a_flood_of_syns_is_bounded_and_others_get_through() {
    let mut net = Net::new(3, Weather::FAIR, 75);
    let listener = listen(&mut net, 2, 80);
    let to = SocketAddr::new(address(2), 80);
    // Node 3 opens many connections and forgets each at once, so that the answers find nobody.
    for _ in 0..300 {
        let conn = net.host(3).core.connect_tcp(to).unwrap();
        net.drain();
        net.host(3).core.abort(conn);
        net.weather.loss = 1000;
        net.drain();
        net.weather.loss = 0;
    }
    net.weather.loss = 0;
    net.run(Duration::from_millis(1));
    assert!(net.host(2).core.connection_count() <= 128);
    let (client, server) = connect(&mut net, listener, address(2), 80);
    net.host(1).core.write(client, b"hello").unwrap();
    let mut buffer = [0; 8];
    net.run_until(MINUTE, "data", |net| {
        net.host(2).core.read(server, &mut buffer) == Ok(Io::Ready(5))
    });
    net.run(2 * MINUTE);
    assert_eq!(
        net.host(2).core.connection_count(),
        1,
        "what nobody completes goes away"
    );
}

#[test]
fn without_memory_a_connection_is_refused() {
    let mut net = Net::new(2, Weather::FAIR, 80);
    net.budget = tailwharf_node_core::MemoryBudget::new(0);
    net.restart(1);
    let error = net
        .host(1)
        .core
        .connect_tcp(SocketAddr::new(address(2), 80))
        .unwrap_err();
    assert_eq!(error, tailwharf_node_core::ConnectError::NoMemory);
}

#[test]
fn ports_and_handles_are_not_mixed_up() {
    let mut net = Net::new(2, Weather::FAIR, 85);
    let first = listen(&mut net, 2, 80);
    assert!(net.host(2).core.listen_tcp(None, 80, 1).is_err());
    assert!(net.host(2).core.listen_tcp(None, 0, 1).is_err());
    net.host(2).core.close_listener(first);
    let second = listen(&mut net, 2, 80);
    assert!(net.host(2).core.accept(first).is_none());
    let (_, server) = connect(&mut net, second, address(2), 80);
    assert_eq!(
        net.host(2).core.connection_addresses(server).unwrap().0,
        SocketAddr::new(address(2), 80)
    );
}
