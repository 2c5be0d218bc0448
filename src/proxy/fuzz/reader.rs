//! Reads what the proxy has written as a program that knows nothing but RFC 9112 and forgives nothing does.

/// A message, and what follows it.
#[derive(Debug)]
pub(super) struct Message<'a> {
    /// The three parts of the first line.
    pub(super) line: [&'a str; 3],
    /// Names as they are, and values.
    pub(super) fields: Vec<(&'a str, &'a [u8])>,
    pub(super) body: Vec<u8>,
    /// `None` if there is no trailer section, since the body is not chunked.
    pub(super) trailers: Option<Vec<(&'a str, &'a [u8])>>,
    pub(super) rest: &'a [u8],
}

/// It is not a message, by the letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid(pub(super) &'static str);

/// It is the beginning of one.
pub(super) const ENDED_EARLY: Invalid = Invalid("it ends early");

/// What the reader knows of the message beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Request,
    /// Whether it answers a `HEAD`.
    Response {
        to_head: bool,
    },
}

impl<'a> Message<'a> {
    pub(super) fn read(bytes: &'a [u8], context: Context) -> Result<Message<'a>, Invalid> {
        let mut rest = bytes;
        let line = first_line(take_line(&mut rest)?, context)?;
        let fields = take_fields(&mut rest)?;
        let mut message = Message {
            line,
            fields,
            body: Vec::new(),
            trailers: None,
            rest,
        };
        message.take_body(context)?;
        Ok(message)
    }

    /// The values of the fields with this name, which is in lower case.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.fields.iter();
        fields
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    pub(super) fn is_interim(&self) -> bool {
        self.line[1].starts_with('1')
    }

    fn take_body(&mut self, context: Context) -> Result<(), Invalid> {
        let codings: Vec<_> = self.values("transfer-encoding").collect();
        let lengths: Vec<_> = self.values("content-length").collect();
        let length = match lengths[..] {
            [] => None,
            [length] => Some(number(length, 10).ok_or(Invalid("length"))?),
            _ => return Err(Invalid("several lengths")),
        };
        if let Context::Response { to_head } = context
            && (to_head || self.is_interim() || ["204", "304"].contains(&self.line[1]))
        {
            return Ok(());
        }
        match codings[..] {
            [] => {}
            [coding] if coding.eq_ignore_ascii_case(b"chunked") && length.is_none() => {
                return self.take_chunks();
            }
            _ => return Err(Invalid("coding")),
        }
        let length = match (length, context) {
            (Some(length), _) => length,
            (None, Context::Request) => 0,
            (None, Context::Response { .. }) => self.rest.len(),
        };
        self.body = take(&mut self.rest, length)?.to_vec();
        Ok(())
    }

    fn take_chunks(&mut self) -> Result<(), Invalid> {
        loop {
            let size = take_line(&mut self.rest)?;
            match number(size, 16).ok_or(Invalid("chunk size"))? {
                0 => break,
                size => self.body.extend_from_slice(take(&mut self.rest, size)?),
            }
            if take(&mut self.rest, 2)? != b"\r\n" {
                return Err(Invalid("end of a chunk"));
            }
        }
        self.trailers = Some(take_fields(&mut self.rest)?);
        Ok(())
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Invalid> {
    let (taken, left) = rest.split_at_checked(length).ok_or(ENDED_EARLY)?;
    *rest = left;
    Ok(taken)
}

/// A line without its end. There is no CR in it, no LF and no NUL.
fn take_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Invalid> {
    let end = rest.iter().position(|byte| b"\r\n\0".contains(byte));
    let line = take(rest, end.ok_or(ENDED_EARLY)?)?;
    match take(rest, 2)? {
        b"\r\n" => Ok(line),
        _ => Err(Invalid("end of a line")),
    }
}

fn first_line(line: &[u8], context: Context) -> Result<[&str; 3], Invalid> {
    let invalid = Invalid("first line");
    let Ok(line) = std::str::from_utf8(line) else {
        return Err(invalid);
    };
    let mut parts = line.splitn(3, ' ');
    let mut part = || parts.next().ok_or(Invalid("parts of the first line"));
    let line @ [first, second, third] = [part()?, part()?, part()?];
    let valid = match context {
        Context::Request => {
            is_token(first.as_bytes())
                && !second.is_empty()
                && !second.bytes().any(|byte| byte.is_ascii_control())
                && third == "HTTP/1.1"
        }
        Context::Response { .. } => {
            first == "HTTP/1.1"
                && second.len() == 3
                && second.bytes().all(|byte| byte.is_ascii_digit())
                && third.bytes().all(is_text)
        }
    };
    valid.then_some(line).ok_or(invalid)
}

fn take_fields<'a>(rest: &mut &'a [u8]) -> Result<Vec<(&'a str, &'a [u8])>, Invalid> {
    let mut fields = Vec::new();
    loop {
        let line = take_line(rest)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Invalid("no colon"))?);
        let name = std::str::from_utf8(name).map_err(|_| Invalid("field name"))?;
        if !is_token(name.as_bytes()) {
            return Err(Invalid("field name"));
        }
        let white = |byte: &u8| b" \t".contains(byte);
        let value = &value[1..];
        let begin = value.iter().position(|byte| !white(byte));
        let value = &value[begin.unwrap_or(value.len())..];
        let end = value.iter().rposition(|byte| !white(byte));
        let value = &value[..end.map_or(0, |last| last + 1)];
        if !value.iter().copied().all(is_text) {
            return Err(Invalid("field value"));
        }
        fields.push((name, value));
    }
}

fn is_token(name: &[u8]) -> bool {
    let is_char = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_char)
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn number(digits: &[u8], base: u32) -> Option<usize> {
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    usize::from_str_radix(digits, base).ok()
}
