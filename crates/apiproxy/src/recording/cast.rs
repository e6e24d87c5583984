//! A recording in the form of asciicast, version 2: a header, then a line of JSON for each thing that happened. Pure.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Channel, Malformed, Tap};

/// Most bytes of sizes that wait for the rest of their JSON.
const MAX_SIZE_TEXT: usize = 4096;
/// The size of a terminal until it says its own.
const TERMINAL: (u16, u16) = (80, 24);

/// The first line, with the fields that Tailscale's recorder knows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    pub(crate) version: u8,
    pub(crate) width: u16,
    pub(crate) height: u16,
    /// Seconds since 1970.
    pub(crate) timestamp: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) command: String,
    pub(crate) src_node: String,
    #[serde(rename = "srcNodeID")]
    pub(crate) src_node_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) src_node_tags: Vec<String>,
    #[serde(rename = "srcNodeUserID", skip_serializing_if = "Option::is_none")]
    pub(crate) src_node_user_id: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) src_node_user: String,
    pub(crate) env: Option<()>,
    pub(crate) ssh_user: &'static str,
    pub(crate) local_user: &'static str,
    #[serde(rename = "connectionID")]
    pub(crate) connection_id: String,
    pub(crate) kubernetes: Kubernetes,
}

/// What the session is in.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Kubernetes {
    pub(crate) pod_name: String,
    pub(crate) namespace: String,
    pub(crate) container: String,
    pub(crate) session_type: &'static str,
}

impl Header {
    /// Width and height at the begin.
    pub(crate) fn size(terminal: bool) -> (u16, u16) {
        if terminal { TERMINAL } else { (0, 0) }
    }

    /// The line.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Makes lines of what a session shows.
pub(crate) struct Writer {
    terminal: bool,
    now: Duration,
    lines: Vec<u8>,
    output: Text,
    error_output: Text,
    sizes: Vec<u8>,
    /// The API server reads no more sizes after one that it cannot read.
    sizes_end: bool,
}

/// One stream of output.
#[derive(Default)]
struct Text {
    /// The begin of a character whose rest has not come.
    begun: Vec<u8>,
    /// Bytes that are no text, of a session without a terminal.
    binary: Option<Digest>,
}

struct Digest {
    bytes: u64,
    hash: Sha256,
}

impl Writer {
    pub(crate) fn new(terminal: bool) -> Self {
        Self {
            terminal,
            now: Duration::ZERO,
            lines: Vec::new(),
            output: Text::default(),
            error_output: Text::default(),
            sizes: Vec::new(),
            sizes_end: false,
        }
    }

    /// How long after the begin comes what is told next. Times never go back.
    pub(crate) fn at(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// The lines so far, once.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.lines)
    }

    /// The last lines.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        for channel in [Channel::Output, Channel::ErrorOutput] {
            let text = self.text(channel);
            let begun = std::mem::take(&mut text.begun);
            let binary = text.binary.take();
            if !begun.is_empty() {
                self.event("o", &String::from_utf8_lossy(&begun));
            }
            if let Some(Digest { bytes, hash }) = binary {
                let digest = hex(&hash.finalize());
                self.event("m", &format!("{bytes} bytes that are no text, sha256 {digest}"));
            }
        }
        self.take()
    }

    fn text(&mut self, channel: Channel) -> &mut Text {
        match channel {
            Channel::ErrorOutput => &mut self.error_output,
            _ => &mut self.output,
        }
    }

    fn event(&mut self, code: &str, data: &str) {
        let seconds = self.now.as_micros() as f64 / 1e6;
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut self.lines, &(seconds, code, data));
        self.lines.push(b'\n');
    }

    fn resized(&mut self, size: &Value) -> bool {
        let side = |name: &str| {
            let fields = size.as_object()?;
            let mut found = fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            u16::try_from(found.next_back()?.1.as_u64()?).ok()
        };
        let Some((columns, rows)) = side("width").zip(side("height")) else {
            return false;
        };
        self.event("r", &format!("{columns}x{rows}"));
        true
    }
}

impl Tap for Writer {
    fn output(&mut self, channel: Channel, bytes: &[u8]) {
        let terminal = self.terminal;
        let text = self.text(channel);
        if let Some(digest) = &mut text.binary {
            digest.bytes += bytes.len() as u64;
            digest.hash.update(bytes);
            return;
        }
        let joined: Vec<u8>;
        let bytes = if text.begun.is_empty() {
            bytes
        } else {
            joined = [&std::mem::take(&mut text.begun), bytes].concat();
            &joined
        };
        let end = complete(bytes);
        let (whole, begun) = bytes.split_at(end);
        if !terminal && (whole.contains(&0) || std::str::from_utf8(whole).is_err()) {
            let mut hash = Sha256::new();
            hash.update(bytes);
            text.binary = Some(Digest {
                bytes: bytes.len() as u64,
                hash,
            });
            return;
        }
        text.begun = begun.to_vec();
        if !whole.is_empty() {
            let shown = String::from_utf8_lossy(whole);
            self.event("o", &shown);
        }
    }

    fn resize(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        if self.sizes_end {
            return Ok(());
        }
        self.sizes.extend_from_slice(bytes);
        let sizes = std::mem::take(&mut self.sizes);
        let mut read = serde_json::Deserializer::from_slice(&sizes).into_iter::<Value>();
        let mut whole = 0;
        while let Some(next) = read.next() {
            match next {
                Ok(size) => {
                    whole = read.byte_offset();
                    if !self.resized(&size) {
                        self.sizes_end = true;
                        return Ok(());
                    }
                }
                Err(error) if error.is_eof() => break,
                Err(_) => {
                    self.sizes_end = true;
                    return Ok(());
                }
            }
        }
        self.sizes = sizes[whole..].to_vec();
        if self.sizes.len() > MAX_SIZE_TEXT {
            return Err(Malformed("the size of the terminal is too long"));
        }
        Ok(())
    }
}

/// How many bytes end with a whole character: what follows is the begin of one.
fn complete(bytes: &[u8]) -> usize {
    let back = bytes.len().saturating_sub(3);
    let Some(start) = (back..bytes.len()).rev().find(|at| bytes[*at] & 0xc0 != 0x80) else {
        return bytes.len();
    };
    let length = match bytes[start] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if start + length > bytes.len() {
        start
    } else {
        bytes.len()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
