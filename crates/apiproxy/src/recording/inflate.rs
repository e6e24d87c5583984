//! The compressed headers of one direction of a SPDY connection: one zlib stream with the dictionary of SPDY for all of them. Pure;
//! what it makes of a block is bounded.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::Malformed;
use super::dictionary;

/// How far back a zlib stream refers.
const WINDOW: usize = 32 * 1024;
/// The two bytes of a zlib stream and the checksum of its dictionary.
const HEADER: usize = 6;
/// In the second byte: a dictionary is needed.
const NEEDS_DICTIONARY: u8 = 0x20;
/// Most bytes of the headers of one stream.
pub(super) const MAX_BLOCK: usize = 16 * 1024;

/// The state of the zlib stream after the blocks so far.
pub(super) struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    header: Vec<u8>,
}

impl Inflater {
    pub(super) fn new() -> Self {
        let mut window = dictionary::bytes();
        let at = window.len();
        window.resize(WINDOW, 0);
        Self {
            state: Box::default(),
            window,
            at,
            header: Vec::new(),
        }
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// When the block is damaged, or larger than [`MAX_BLOCK`].
    pub(super) fn block(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Malformed> {
        while self.header.len() < HEADER {
            let (first, rest) = input.split_first().ok_or(Malformed("a header block is cut"))?;
            self.header.push(*first);
            input = rest;
            if self.header.len() == HEADER {
                self.check_header()?;
            }
        }
        let mut block = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                input,
                &mut self.window,
                self.at,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            input = &input[read..];
            block.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            if block.len() > MAX_BLOCK {
                return Err(Malformed("the headers of a stream are too large"));
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(block),
                _ => return Err(Malformed("a header block cannot be decompressed")),
            }
        }
    }

    fn check_header(&self) -> Result<(), Malformed> {
        let valid = self.header[0] & 0x0f == 8
            && self.header[1] & NEEDS_DICTIONARY != 0
            && u16::from_be_bytes([self.header[0], self.header[1]]).is_multiple_of(31)
            && self.header[2..] == dictionary::CHECKSUM.to_be_bytes();
        valid
            .then_some(())
            .ok_or(Malformed("the headers are not compressed as SPDY/3 says"))
    }
}
