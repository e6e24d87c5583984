//! Plays a recording in the terminal, in its own time or faster. What could act on the terminal beyond showing something is left out.

use std::io::{BufRead, Write};
use std::time::Duration;

use serde_json::Value;

/// Longest line of a recording.
const MAX_LINE: u64 = 16 << 20;

/// How fast a recording is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds of the recording in one of the player; zero: without any pause.
    pub speed: f64,
    /// Longest pause.
    pub longest: Duration,
}

/// A recording cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// It cannot be read, or the terminal not be written to.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line is not one of a recording.
    #[error("line {0} is damaged; the recording ends there")]
    Line(usize),
}

/// Plays what `recording` has to `terminal`; `pause` waits.
///
/// # Errors
/// When a line cannot be read.
pub fn play(
    mut recording: impl BufRead,
    terminal: &mut impl Write,
    pace: Pace,
    mut pause: impl FnMut(Duration),
) -> Result<(), PlayError> {
    let mut filter = Filter::default();
    let (mut line, mut number, mut before) = (Vec::new(), 0, 0.0);
    loop {
        line.clear();
        number += 1;
        if std::io::Read::take(&mut recording, MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let damaged = || PlayError::Line(number);
        let event: Value = serde_json::from_slice(&line).map_err(|_| damaged())?;
        if number == 1 && event.is_object() {
            continue;
        }
        let (Some(at), Some(code), Some(data)) = (event[0].as_f64(), event[1].as_str(), event[2].as_str())
        else {
            return Err(damaged());
        };
        if pace.speed > 0.0 && at > before {
            let wait = Duration::try_from_secs_f64((at - before) / pace.speed).unwrap_or_default();
            pause(wait.min(pace.longest));
        }
        before = at;
        match code {
            "o" => terminal.write_all(filter.pass(data).as_bytes())?,
            "m" => writeln!(
                terminal,
                "[{}]",
                data.chars().filter(|c| !c.is_control()).collect::<String>()
            )?,
            _ => {}
        }
        terminal.flush()?;
    }
}

/// Lets text, colours and movements of the cursor through. Titles, the clipboard, links, questions to the terminal and whatever is unknown stay out.
#[derive(Debug, Default)]
struct Filter {
    state: State,
    parameters: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    /// Between `ESC [` and its last letter.
    Control,
    /// A text for the terminal itself, until BEL or `ESC \`.
    Hidden,
    HiddenEscape,
    /// One more character belongs to the sequence.
    One,
}

impl Filter {
    fn pass(&mut self, data: &str) -> String {
        let mut shown = String::with_capacity(data.len());
        for c in data.chars() {
            self.state = match (self.state, c) {
                (State::Text, '\u{1b}') => State::Escape,
                (State::Text, '\n' | '\r' | '\t' | '\u{8}') => {
                    shown.push(c);
                    State::Text
                }
                (State::Text, c) => {
                    if !c.is_control() {
                        shown.push(c);
                    }
                    State::Text
                }
                (State::Escape, '[') => {
                    self.parameters.clear();
                    State::Control
                }
                (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::Hidden,
                (State::Escape, '(' | ')' | '*' | '+' | '#' | '%' | ' ') => State::One,
                (State::Escape | State::One, _) => State::Text,
                (State::Control, '\u{40}'..='\u{7e}') => {
                    let plain = self
                        .parameters
                        .bytes()
                        .all(|byte| byte.is_ascii_digit() || byte == b';');
                    if plain && matches!(c, 'A'..='H' | 'J' | 'K' | 'L' | 'M' | 'P' | 'X' | '@' | 'd' | 'm') {
                        shown.push_str("\u{1b}[");
                        shown.push_str(&self.parameters);
                        shown.push(c);
                    }
                    State::Text
                }
                (State::Control, '\u{20}'..='\u{3f}') if self.parameters.len() < 64 => {
                    self.parameters.push(c);
                    State::Control
                }
                (State::Control, _) => State::Text,
                (State::Hidden, '\u{7}') => State::Text,
                (State::Hidden, '\u{1b}') => State::HiddenEscape,
                (State::HiddenEscape, '\\') => State::Text,
                (State::Hidden | State::HiddenEscape, _) => State::Hidden,
            };
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(lines: &str) -> (String, Vec<Duration>) {
        let (mut out, mut pauses) = (Vec::new(), Vec::new());
        let pace = Pace {
            speed: 2.0,
            longest: Duration::from_secs(3),
        };
        play(lines.as_bytes(), &mut out, pace, |pause| pauses.push(pause)).unwrap();
        (String::from_utf8(out).unwrap(), pauses)
    }

    #[test]
    fn r_05_what_could_act_on_the_terminal_stays_out() {
        let attack = "a\\u001b]0;title\\u0007b\\u001b]52;c;aGk=\\u001b\\\\c\\u001b[6nd\\u001b]8;;http://x\\u0007e\\u001b[31mf\\u001bP+q\\u001b\\\\g";
        let (shown, _) = played(&format!("{{\"version\":2}}\n[0.1,\"o\",\"{attack}\"]\n"));
        assert_eq!(shown, "abcde\u{1b}[31mfg");
    }

    #[test]
    fn the_pace_is_that_of_the_recording() {
        let (shown, pauses) =
            played("{\"version\":2}\n[1.0,\"o\",\"a\"]\n[1.0,\"r\",\"80x24\"]\n[60.0,\"o\",\"b\"]\n");
        assert_eq!(shown, "ab");
        assert_eq!(pauses, [Duration::from_millis(500), Duration::from_secs(3)]);
    }

    #[test]
    fn r_11_a_damaged_recording_says_where() {
        let pace = Pace {
            speed: 0.0,
            longest: Duration::ZERO,
        };
        let cut = play(
            &b"{\"version\":2}\n[1.0,\"o\",\"a\"]\n[2.0,\"o"[..],
            &mut Vec::new(),
            pace,
            |_| (),
        );
        assert!(matches!(cut, Err(PlayError::Line(3))), "{cut:?}");
    }
}
