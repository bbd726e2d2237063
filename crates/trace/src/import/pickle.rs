//! Python's pickles, read without running anything.
//!
//! A pickle is a program for a machine with a stack and a memo; some of its instructions call functions of Python's. This machine has all
//! instructions that make plain values, and for the calling ones a fixed list of names that stand for plain containers. Any other name, and
//! any other way to get at code, is an error before the machine goes on.
//!
//! Every instruction takes bounded time and memory, and nothing here recurses, so a file costs no more than its length times a constant. A
//! value may be shared, even contain itself: whoever walks values counts its steps ([`Pickle::step`]).

use std::cell::Cell;
use std::collections::HashMap;

use super::ImportFault;

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PickleFault {
    #[error("it would call {name}; nothing was run, and snapshots call nothing")]
    Forbidden { name: String },
    #[error("instruction {opcode:#04x} is not one that snapshots have")]
    Opcode { opcode: u8 },
    #[error("protocol {protocol}; 2 to 5 are read")]
    Protocol { protocol: u8 },
    #[error("the file ends within an instruction")]
    Ended,
    #[error("the stack is empty")]
    Stack,
    #[error("there is no mark")]
    Mark,
    #[error("more than {MAX_MARKS} levels of nesting")]
    Nesting,
    #[error("nothing is kept under {place}")]
    Memo { place: u64 },
    #[error("a text that is not UTF-8")]
    Text,
    #[error("'{text}' is not a number")]
    Number { text: String },
    #[error("a {expected} is wanted here")]
    Kind { expected: &'static str },
    #[error("more than {MAX_VALUES} values")]
    TooLarge,
    #[error("parts of it are shared so often that it is larger than its file")]
    Shared,
}

/// So many marks may be open.
const MAX_MARKS: usize = 10_000;

/// So many values there may be.
const MAX_VALUES: usize = 1 << 28;

/// Callables that only make plain containers, by module and name.
const CONTAINERS: [(&str, &str); 6] = [
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "tuple"),
    ("__builtin__", "dict"),
];

/// A value. Texts lie in the file, containers in [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    /// `None`, and whatever has no use here: floats, bytes, sets, numbers beyond 64 bits.
    Other,
    Bool(bool),
    Int(i64),
    /// Where it starts, and its length.
    Text(u32, u32),
    List(u32),
    Dict(u32),
    Tuple(u32),
    /// One of [`CONTAINERS`].
    Container(u8),
}

/// A pickle that has been read.
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tuples: Vec<Vec<Value>>,
    root: Value,
    /// Steps that walkers may still take.
    steps: Cell<usize>,
}

impl<'a> Pickle<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Pickle<'a>, ImportFault> {
        let pickle = Pickle {
            bytes,
            lists: Vec::new(),
            dicts: Vec::new(),
            tuples: Vec::new(),
            root: Value::Other,
            steps: Cell::new(bytes.len()),
        };
        let mut machine =
            Machine { at: 0, pickle, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), values: 0 };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(true) => {}
                Ok(false) => return Ok(machine.pickle),
                Err(fault) => return Err(ImportFault::Pickle { at, fault }),
            }
        }
    }

    pub(super) fn root(&self) -> Value {
        self.root
    }

    /// Counts a step of a walk. A file without sharing has more bytes than values.
    pub(super) fn step(&self) -> Result<(), ImportFault> {
        let left = self.steps.get().checked_sub(1);
        self.steps.set(left.ok_or(ImportFault::Pickle { at: self.bytes.len(), fault: PickleFault::Shared })?);
        Ok(())
    }

    pub(super) fn text(&self, value: Value) -> Option<&'a str> {
        let Value::Text(start, length) = value else { return None };
        // UTF-8 was checked when it was read.
        str::from_utf8(&self.bytes[start as usize..][..length as usize]).ok()
    }

    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::List(index) => Some(&self.lists[index as usize]),
            Value::Tuple(index) => Some(&self.tuples[index as usize]),
            _ => None,
        }
    }

    /// What a dictionary has under a key. Of a key that is there several times, the last.
    pub(super) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Value::Dict(index) = dict else { return None };
        let pairs = &self.dicts[index as usize];
        pairs.iter().rev().find(|pair| self.text(pair.0) == Some(key)).map(|pair| pair.1)
    }
}

struct Machine<'a> {
    at: usize,
    pickle: Pickle<'a>,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    values: usize,
}

type Outcome<T> = Result<T, PickleFault>;

impl<'a> Machine<'a> {
    fn take(&mut self, length: usize) -> Outcome<&'a [u8]> {
        let bytes = self.pickle.bytes.get(self.at..).and_then(|rest| rest.get(..length)).ok_or(PickleFault::Ended)?;
        self.at += length;
        Ok(bytes)
    }

    /// A number of `N` bytes, the lowest first.
    fn number<const N: usize>(&mut self) -> Outcome<u64> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// A length of `N` bytes, and so many bytes.
    fn counted<const N: usize>(&mut self) -> Outcome<&'a [u8]> {
        let length = self.number::<N>()?;
        self.take(usize::try_from(length).map_err(|_| PickleFault::Ended)?)
    }

    fn line(&mut self) -> Outcome<&'a [u8]> {
        let rest = self.pickle.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleFault::Ended)?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn push(&mut self, value: Value) -> Outcome<()> {
        self.count(1)?;
        self.stack.push(value);
        Ok(())
    }

    fn count(&mut self, values: usize) -> Outcome<()> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES { Err(PickleFault::TooLarge) } else { Ok(()) }
    }

    /// The topmost value, which no mark covers.
    fn pop(&mut self) -> Outcome<Value> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err(PickleFault::Stack);
        }
        self.stack.pop().ok_or(PickleFault::Stack)
    }

    fn top(&self) -> Outcome<Value> {
        self.stack.last().copied().ok_or(PickleFault::Stack)
    }

    /// Everything above the last mark.
    fn since_mark(&mut self) -> Outcome<Vec<Value>> {
        let mark = self.marks.pop().ok_or(PickleFault::Mark)?;
        Ok(self.stack.split_off(mark))
    }

    /// A text that ends at `end` of the file.
    fn push_text(&mut self, text: &'a [u8], end: usize) -> Outcome<()> {
        str::from_utf8(text).map_err(|_| PickleFault::Text)?;
        self.push(Value::Text((end - text.len()) as u32, text.len() as u32))
    }

    /// A number written as text, as old protocols do.
    fn push_decimal(&mut self, text: &[u8]) -> Outcome<()> {
        let text = str::from_utf8(text).map_err(|_| PickleFault::Text)?;
        let digits = text.strip_suffix('L').unwrap_or(text);
        let value = match text {
            "00" => Value::Bool(false),
            "01" => Value::Bool(true),
            _ => match digits.parse::<i64>() {
                Ok(number) => Value::Int(number),
                Err(_) if digits.len() > 18 && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
                    Value::Other
                }
                Err(_) => return Err(PickleFault::Number { text: text.chars().take(40).collect() }),
            },
        };
        self.push(value)
    }

    /// Two's complement of any length, the lowest byte first.
    fn push_long(&mut self, bytes: &[u8]) -> Outcome<()> {
        let sign = bytes.last().map_or(0, |&byte| if byte & 0x80 == 0 { 0 } else { 0xff });
        let beyond = bytes.get(8..).unwrap_or_default();
        let mut low = [sign; 8];
        let length = bytes.len().min(8);
        low[..length].copy_from_slice(&bytes[..length]);
        let number = i64::from_le_bytes(low);
        let fits = beyond.iter().all(|&byte| byte == sign) && (number < 0) == (sign != 0);
        self.push(if fits { Value::Int(number) } else { Value::Other })
    }

    fn push_list(&mut self, items: Vec<Value>) -> Outcome<()> {
        self.pickle.lists.push(items);
        self.push(Value::List((self.pickle.lists.len() - 1) as u32))
    }

    fn push_tuple(&mut self, items: Vec<Value>) -> Outcome<()> {
        self.pickle.tuples.push(items);
        self.push(Value::Tuple((self.pickle.tuples.len() - 1) as u32))
    }

    fn push_dict(&mut self, items: &[Value]) -> Outcome<()> {
        self.pickle.dicts.push(Vec::new());
        let index = self.pickle.dicts.len() - 1;
        self.extend_dict(index, items)?;
        self.push(Value::Dict(index as u32))
    }

    fn extend_dict(&mut self, index: usize, items: &[Value]) -> Outcome<()> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(PickleFault::Kind { expected: "value to each key" });
        };
        self.pickle.dicts[index].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn append(&mut self, items: &[Value]) -> Outcome<()> {
        let Value::List(index) = self.top()? else { return Err(PickleFault::Kind { expected: "list" }) };
        self.pickle.lists[index as usize].extend_from_slice(items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Value]) -> Outcome<()> {
        let Value::Dict(index) = self.top()? else { return Err(PickleFault::Kind { expected: "dictionary" }) };
        self.extend_dict(index as usize, items)
    }

    /// A value is kept under a number.
    fn keep(&mut self, place: u64) -> Outcome<()> {
        let top = self.top()?;
        self.count(1)?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u64) -> Outcome<()> {
        let value = *self.memo.get(&place).ok_or(PickleFault::Memo { place })?;
        self.push(value)
    }

    fn place_of(text: &[u8]) -> Outcome<u64> {
        let text = String::from_utf8_lossy(text);
        text.parse().map_err(|_| PickleFault::Number { text: text.chars().take(40).collect() })
    }

    /// A name of Python's, which must be one of the harmless.
    fn push_global(&mut self, module: &str, name: &str) -> Outcome<()> {
        match CONTAINERS.iter().position(|known| *known == (module, name)) {
            Some(index) => self.push(Value::Container(index as u8)),
            None => {
                let name = format!("{module}.{name}").chars().take(80).collect::<String>().escape_debug().to_string();
                Err(PickleFault::Forbidden { name })
            }
        }
    }

    /// Makes a container: an empty one, or of one list or tuple of items.
    fn call(&mut self) -> Outcome<()> {
        let arguments = self.pop()?;
        let Value::Container(which) = self.pop()? else {
            return Err(PickleFault::Kind { expected: "container's name" });
        };
        let Value::Tuple(_) = arguments else { return Err(PickleFault::Kind { expected: "tuple" }) };
        let arguments = self.pickle.items(arguments).unwrap_or_default();
        let (_, name) = CONTAINERS[which as usize];
        // What a default dictionary is called with makes its defaults.
        let first = if name == "defaultdict" { None } else { arguments.first() };
        let items = first.and_then(|&value| self.pickle.items(value)).unwrap_or_default().to_vec();
        // Copies of what is shared: as dear as if it were in the file.
        self.count(items.len())?;
        match name {
            "list" => self.push_list(items),
            "tuple" => self.push_tuple(items),
            _ => {
                let pair =
                    |&item: &Value| self.pickle.items(item).filter(|pair| pair.len() == 2).map(<[Value]>::to_vec);
                let pairs: Option<Vec<Vec<Value>>> = items.iter().map(pair).collect();
                self.push_dict(&pairs.ok_or(PickleFault::Kind { expected: "list of pairs" })?.concat())
            }
        }
    }

    /// One instruction. False at the last.
    fn step(&mut self) -> Outcome<bool> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => {
                self.pickle.root = self.pop()?;
                return Ok(false);
            }
            0x80 => {
                let protocol = self.take(1)?[0];
                if !(2..=5).contains(&protocol) {
                    return Err(PickleFault::Protocol { protocol });
                }
            }
            // FRAME: where the next instructions end is of no use to a reader in memory.
            0x95 => {
                self.take(8)?;
            }
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(PickleFault::Nesting);
                }
                self.marks.push(self.stack.len());
            }
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.since_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.push(Value::Other)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'I' | b'L' => {
                let line = self.line()?;
                self.push_decimal(line)?;
            }
            b'K' => {
                let number = self.number::<1>()?;
                self.push(Value::Int(number as i64))?;
            }
            b'M' => {
                let number = self.number::<2>()?;
                self.push(Value::Int(number as i64))?;
            }
            b'J' => {
                let number = self.number::<4>()? as u32 as i32;
                self.push(Value::Int(number.into()))?;
            }
            0x8a => {
                let bytes = self.counted::<1>()?;
                self.push_long(bytes)?;
            }
            0x8b => {
                let bytes = self.counted::<4>()?;
                self.push_long(bytes)?;
            }
            b'F' => {
                self.line()?;
                self.push(Value::Other)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
            }
            b'V' => {
                let text = self.line()?;
                self.push_text(text, self.at - 1)?;
            }
            0x8c => {
                let text = self.counted::<1>()?;
                self.push_text(text, self.at)?;
            }
            b'X' => {
                let text = self.counted::<4>()?;
                self.push_text(text, self.at)?;
            }
            0x8d => {
                let text = self.counted::<8>()?;
                self.push_text(text, self.at)?;
            }
            // Bytes, and texts of Python 2: no snapshot has keys of that kind.
            b'U' | b'C' => {
                self.counted::<1>()?;
                self.push(Value::Other)?;
            }
            b'T' | b'B' => {
                self.counted::<4>()?;
                self.push(Value::Other)?;
            }
            0x8e | 0x96 => {
                self.counted::<8>()?;
                self.push(Value::Other)?;
            }
            b']' => self.push_list(Vec::new())?,
            b')' => self.push_tuple(Vec::new())?,
            b'}' => self.push_dict(&[])?,
            b'l' => {
                let items = self.since_mark()?;
                self.push_list(items)?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items)?;
            }
            b'd' => {
                let items = self.since_mark()?;
                self.push_dict(&items)?;
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_tuple(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(&items)?;
            }
            // Sets: nothing here looks into them.
            0x8f => self.push(Value::Other)?,
            0x90 => {
                self.since_mark()?;
                self.top()?;
            }
            0x91 => {
                self.since_mark()?;
                self.push(Value::Other)?;
            }
            b'p' => {
                let place = Self::place_of(self.line()?)?;
                self.keep(place)?;
            }
            b'q' => {
                let place = self.number::<1>()?;
                self.keep(place)?;
            }
            b'r' => {
                let place = self.number::<4>()?;
                self.keep(place)?;
            }
            0x94 => self.keep(self.memo.len() as u64)?,
            b'g' => {
                let place = Self::place_of(self.line()?)?;
                self.recall(place)?;
            }
            b'h' => {
                let place = self.number::<1>()?;
                self.recall(place)?;
            }
            b'j' => {
                let place = self.number::<4>()?;
                self.recall(place)?;
            }
            b'c' | b'i' => {
                let module = String::from_utf8_lossy(self.line()?).into_owned();
                let name = String::from_utf8_lossy(self.line()?).into_owned();
                self.push_global(&module, &name)?;
                if opcode == b'i' {
                    // Harmless then, but of no protocol from 2 on.
                    return Err(PickleFault::Opcode { opcode });
                }
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let names = self.pickle.text(module).zip(self.pickle.text(name));
                let (module, name) = names.ok_or(PickleFault::Kind { expected: "text" })?;
                self.push_global(module, name)?;
            }
            b'R' | 0x81 => self.call()?,
            // The state of a container that was made: an ordered dictionary has none of its own.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            _ => return Err(PickleFault::Opcode { opcode }),
        }
        Ok(true)
    }
}
