//! HuJSON: JSON with comments and trailing commas, read into a tree that knows where everything stands.

use serde_json::{Map, Number, Value as Json};

use crate::limits::{self, MAX_TEXT};
use crate::{PolicyError, Problem};

/// How deep values may be nested.
const MAX_DEPTH: usize = 64;

/// The longest name of a field, in bytes.
const MAX_NAME: usize = 1024;

/// A place in the text; both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Item>),
    Object(Vec<Member>),
}

/// A field of an object.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) at: Position,
    pub(crate) name: String,
    pub(crate) item: Item,
}

impl Item {
    /// The kind of the value, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }

    /// The value without its places.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::String(text) => Json::String(text.clone()),
            Value::Array(items) => items.iter().map(Self::to_json).collect(),
            Value::Object(members) => Json::Object(
                members
                    .iter()
                    .map(|m| (m.name.clone(), m.item.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Reads HuJSON and gives the same document as a JSON value, comments gone.
///
/// # Errors
///
/// The first place where the text is not HuJSON.
pub fn to_json(text: &str) -> Result<Json, PolicyError> {
    parse(text).map(|item| item.to_json())
}

/// Reads one document.
pub(crate) fn parse(text: &str) -> Result<Item, PolicyError> {
    let mut parser = Parser {
        rest: text,
        at: Position { line: 1, column: 1 },
        values: 0,
    };
    if text.len() > MAX_TEXT {
        return Err(parser.fail(Problem::TooLong));
    }
    parser.blank()?;
    let item = parser.item(0)?;
    parser.blank()?;
    if parser.rest.is_empty() {
        Ok(item)
    } else {
        Err(parser.fail(Problem::TrailingText))
    }
}

struct Parser<'a> {
    rest: &'a str,
    at: Position,
    /// How many values were read.
    values: usize,
}

impl<'a> Parser<'a> {
    fn fail(&self, what: Problem) -> PolicyError {
        PolicyError::new(self.at, what)
    }

    fn syntax(&self, what: &'static str) -> PolicyError {
        self.fail(Problem::Syntax(what))
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.at = Position {
                line: self.at.line + 1,
                column: 1,
            };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    fn take(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.next();
        }
        found
    }

    /// Passes over white space and comments.
    fn blank(&mut self) -> Result<(), PolicyError> {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r' | '\n' | '\u{feff}') => {
                    self.next();
                }
                Some('/') => self.comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn comment(&mut self) -> Result<(), PolicyError> {
        let start = self.at;
        self.next();
        match self.next() {
            Some('/') => {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.next();
                }
                Ok(())
            }
            Some('*') => {
                let mut previous = ' ';
                while let Some(c) = self.next() {
                    if previous == '*' && c == '/' {
                        return Ok(());
                    }
                    previous = c;
                }
                Err(PolicyError::new(
                    start,
                    Problem::Syntax("this comment has no end; close it with */"),
                ))
            }
            _ => Err(PolicyError::new(
                start,
                Problem::Syntax("a comment begins with // or /*"),
            )),
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, PolicyError> {
        if depth > MAX_DEPTH {
            return Err(self.syntax("values are nested too deep"));
        }
        self.values += 1;
        if self.values > limits::VALUES {
            return Err(self.fail(Problem::TooMany {
                what: "values",
                limit: limits::VALUES,
            }));
        }
        let at = self.at;
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::String(self.string()?),
            Some('-' | '0'..='9') => self.number()?,
            Some('a'..='z') => self.word()?,
            Some('\'') => return Err(self.syntax("strings stand in double quotes")),
            Some(_) => return Err(self.syntax("expected a value")),
            None => return Err(self.syntax("the text ends where a value is expected")),
        };
        Ok(Item { at, value })
    }

    fn object(&mut self, depth: usize) -> Result<Value, PolicyError> {
        self.next();
        let mut members: Vec<Member> = Vec::new();
        let mut names = std::collections::HashSet::new();
        loop {
            self.blank()?;
            if self.take('}') {
                return Ok(Value::Object(members));
            }
            let at = self.at;
            match self.peek() {
                Some('"') => {}
                Some(_) => return Err(self.syntax("expected a field name in double quotes, or }")),
                None => return Err(self.syntax("the text ends inside an object; close it with }")),
            }
            let name = self.string()?;
            if name.len() > MAX_NAME {
                return Err(PolicyError::new(
                    at,
                    Problem::Syntax("a field name has at most 1024 bytes"),
                ));
            }
            if !names.insert(name.clone()) {
                return Err(PolicyError::new(at, Problem::DuplicateField(name)));
            }
            self.blank()?;
            if !self.take(':') {
                return Err(self.syntax("expected : after the field name"));
            }
            self.blank()?;
            let item = self.item(depth + 1)?;
            members.push(Member { at, name, item });
            self.blank()?;
            if !self.take(',') && self.peek() != Some('}') {
                return Err(self.syntax("expected , or } after the field"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, PolicyError> {
        self.next();
        let mut items = Vec::new();
        loop {
            self.blank()?;
            if self.take(']') {
                return Ok(Value::Array(items));
            }
            if self.peek().is_none() {
                return Err(self.syntax("the text ends inside an array; close it with ]"));
            }
            items.push(self.item(depth + 1)?);
            self.blank()?;
            if !self.take(',') && self.peek() != Some(']') {
                return Err(self.syntax("expected , or ] after the value"));
            }
        }
    }

    fn string(&mut self) -> Result<String, PolicyError> {
        const NO_END: &str = "this string has no end; close it with a double quote";
        let start = self.at;
        self.next();
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape(at)?),
                Some('\n') | None => return Err(PolicyError::new(start, Problem::Syntax(NO_END))),
                Some(c) if c < ' ' => {
                    return Err(PolicyError::new(
                        at,
                        Problem::Syntax("control characters in strings are written as \\u00.."),
                    ));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, at: Position) -> Result<char, PolicyError> {
        let bad = |what| PolicyError::new(at, Problem::Syntax(what));
        Ok(match self.next() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                const BROKEN: &str =
                    "\\u needs four hexadecimal digits of a character, or of both halves of a pair";
                let first = self.hex4().ok_or_else(|| bad(BROKEN))?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    let paired = self.take('\\') && self.take('u');
                    let second = paired
                        .then(|| self.hex4())
                        .flatten()
                        .filter(|low| (0xdc00..0xe000).contains(low));
                    0x10000 + ((first - 0xd800) << 10) + (second.ok_or_else(|| bad(BROKEN))? - 0xdc00)
                } else {
                    first
                };
                char::from_u32(code).ok_or_else(|| bad(BROKEN))?
            }
            _ => return Err(bad("unknown escape; write \\\\ for a backslash")),
        })
    }

    fn hex4(&mut self) -> Option<u32> {
        (0..4).try_fold(0, |value, _| Some(value * 16 + self.next()?.to_digit(16)?))
    }

    fn number(&mut self) -> Result<Value, PolicyError> {
        let start = self.at;
        let text = self.token(|c| matches!(c, '-' | '+' | '.' | '0'..='9' | 'a'..='z' | 'A'..='Z'));
        let number = serde_json::from_str::<Number>(text).ok();
        number
            .map(Value::Number)
            .ok_or_else(|| PolicyError::new(start, Problem::Syntax("this is not a number")))
    }

    fn word(&mut self) -> Result<Value, PolicyError> {
        let start = self.at;
        Ok(match self.token(|c| c.is_ascii_alphanumeric()) {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => {
                return Err(PolicyError::new(
                    start,
                    Problem::Syntax("strings stand in double quotes"),
                ));
            }
        })
    }

    /// Takes the longest run of characters that `belongs` accepts. They are all ASCII.
    fn token(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.at.column += u32::try_from(end).unwrap_or(u32::MAX);
        token
    }
}
