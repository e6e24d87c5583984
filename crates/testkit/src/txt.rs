//! A nameserver that knows TXT records, for authorities that look for proofs there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;

const HEADER_LEN: usize = 12;
/// The end of a question for TXT records of the internet.
const TXT_QUESTION: [u8; 4] = [0, 16, 0, 1];

/// Answers questions, which come by TCP (RFC 1035), from now on with what `lookup` knows of a name; where it listens.
///
/// # Errors
/// When the system gives no port.
pub fn serve(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let lookup = Arc::new(lookup);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lookup = lookup.clone();
            // Whoever breaks off ends its own connection only.
            thread::spawn(move || talk(stream, &*lookup));
        }
    });
    Ok(address)
}

fn talk(mut stream: TcpStream, lookup: &dyn Fn(&str) -> Option<String>) -> io::Result<()> {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query)?;
        let answer = answer(&query, lookup).unwrap_or_default();
        let length = u16::try_from(answer.len()).unwrap_or_default();
        stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat())?;
    }
    Ok(())
}

fn answer(query: &[u8], lookup: &dyn Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (HEADER_LEN, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
    let question = query.get(HEADER_LEN..at + TXT_QUESTION.len())?;
    let value = question
        .ends_with(&TXT_QUESTION)
        .then(|| lookup(&labels.join(".")))
        .flatten();
    let mut reply = query.get(..2)?.to_vec();
    // An authoritative answer with one question and at most one record.
    reply.extend([0x84, 0, 0, 1, 0, u8::from(value.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(value) = value {
        let length = u8::try_from(value.len()).ok()?;
        reply.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0, length + 1, length]);
        reply.extend(value.as_bytes());
    }
    Some(reply)
}
