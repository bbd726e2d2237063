//! A Rust file with its code and its comments apart: what is looked for in one is not found in the other, nor in strings.

/// Both texts have the line breaks of the file, so that line numbers agree.
pub(super) struct Masked {
    /// Code, with the contents of comments, strings and characters left out.
    pub(super) code: String,
    /// Comments and nothing else.
    pub(super) comments: String,
}

impl Masked {
    pub(super) fn new(text: &str) -> Masked {
        let mut masker = Masker { rest: text, code: String::new(), comments: String::new() };
        while !masker.rest.is_empty() {
            masker.step();
        }
        Masked { code: masker.code, comments: masker.comments }
    }
}

struct Masker<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Masker<'_> {
    /// Takes one comment, string, character, identifier, or anything else of one character.
    fn step(&mut self) {
        let rest = self.rest;
        if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            self.comments.push_str(&rest[..length]);
            self.rest = &rest[length..];
        } else if rest.starts_with("/*") {
            let length = block_comment_length(rest);
            self.comments.push_str(&rest[..length]);
            self.blank_code(length);
        } else if let Some(length) = string_length(rest) {
            self.code.push_str("\"\"");
            self.blank_both(length);
        } else if let Some(length) = character_length(rest) {
            self.code.push_str("' '");
            self.blank_both(length);
        } else {
            let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            let length = if word > 0 { word } else { rest.chars().next().map_or(1, char::len_utf8) };
            self.code.push_str(&rest[..length]);
            if rest.starts_with('\n') {
                self.comments.push('\n');
            }
            self.rest = &rest[length..];
        }
    }

    fn blank_code(&mut self, length: usize) {
        self.code.extend(self.rest[..length].matches('\n'));
        self.rest = &self.rest[length..];
    }

    fn blank_both(&mut self, length: usize) {
        self.comments.extend(self.rest[..length].matches('\n'));
        self.blank_code(length);
    }
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the (nested) block comment that `text` starts with.
fn block_comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string literal, raw or not, that `text` starts with.
fn string_length(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""]
        .into_iter()
        .find(|prefix| text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"')))?;
    let body = &text[prefix.len()..];
    let hashes = body.len() - body.trim_start_matches('#').len();
    let start = prefix.len() + hashes + 1;
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()));
    }
    if hashes > 0 {
        return None;
    }
    let mut escaped = false;
    for (at, c) in text[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// The length of the character literal that `text` starts with; a lifetime is none.
fn character_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let mut characters = body.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let escaped = 2;
        return body.get(escaped..)?.find('\'').map(|at| 1 + escaped + at + 1);
    }
    let (end, quote) = characters.next()?;
    (quote == '\'').then_some(1 + end + 1)
}
