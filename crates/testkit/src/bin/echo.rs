//! A server for tests: echoes TCP and UDP on port 7, and answers HTTP on port 8080 with its host name.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::{fs, io, thread};

fn main() -> io::Result<()> {
    let echo = TcpListener::bind("[::]:7")?;
    let http = TcpListener::bind("[::]:8080")?;
    let datagrams = UdpSocket::bind("[::]:7")?;
    thread::spawn(move || serve(&echo, repeat));
    thread::spawn(move || serve(&http, answer));
    let mut buffer = [0; 65_535];
    loop {
        let (length, from) = datagrams.recv_from(&mut buffer)?;
        datagrams.send_to(&buffer[..length], from)?;
    }
}

fn serve(listener: &TcpListener, handle: fn(&mut TcpStream) -> io::Result<()>) {
    for mut stream in listener.incoming().flatten() {
        // A peer that goes away ends its own connection only.
        thread::spawn(move || handle(&mut stream));
    }
}

fn repeat(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(&mut stream.try_clone()?, stream).map(drop)
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let body = format!("{}\n", host.trim());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
