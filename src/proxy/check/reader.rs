//! An independent reader of messages, which knows only RFC 9112. What the proxy has written must
//! follow the RFC strictly. What was sent to the proxy may also use what the RFC lets a recipient
//! tolerate. Whatever the proxy accepts must be readable in that way, and mean the same.

/// A message, and the bytes that follow it.
#[derive(Debug)]
pub(super) struct Message<'a> {
    /// The three parts of the first line.
    pub(super) line: [&'a str; 3],
    /// The names, unchanged, and the values of all fields.
    pub(super) fields: Vec<(&'a str, &'a [u8])>,
    /// The data of the body.
    pub(super) body: Vec<u8>,
    /// The fields of the trailer section; `None` if there is none, since the body is not chunked.
    pub(super) trailers: Option<Vec<(&'a str, &'a [u8])>>,
    /// The bytes after the message.
    pub(super) rest: &'a [u8],
}

/// Why bytes are not a message in the strict sense of the RFC.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid(pub(super) &'static str);

/// The bytes are only the beginning of a message.
pub(super) const ENDED_EARLY: Invalid = Invalid("it ends early");

/// How much a reader tolerates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The reader tolerates nothing.
    Strict,
    /// The reader tolerates empty lines before a head, lines in the head that end with a bare LF,
    /// HTTP/1.0, a status without a reason or with a reason in another encoding, and chunk
    /// extensions.
    Tolerant,
}

/// What a reader must know about a message besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Request,
    /// True for the response to a `HEAD` request.
    Response {
        to_head: bool,
    },
}

impl<'a> Message<'a> {
    /// Reads the message at the beginning of the bytes.
    pub(super) fn read(
        bytes: &'a [u8],
        context: Context,
        manner: Manner,
    ) -> Result<Message<'a>, Invalid> {
        let mut rest = bytes;
        if manner == Manner::Tolerant {
            while let [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] = rest {
                rest = after;
            }
        }
        let line = first_line(take_line(&mut rest, manner)?, context, manner)?;
        let fields = take_fields(&mut rest, manner)?;
        let mut message = Message {
            line,
            fields,
            body: Vec::new(),
            trailers: None,
            rest,
        };
        message.take_body(context, manner)?;
        Ok(message)
    }

    /// Returns the values of the fields with this name, which is in lower case.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.fields.iter();
        fields
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }

    /// Returns true if another response to the same request follows.
    pub(super) fn is_interim(&self) -> bool {
        self.line[1].starts_with('1')
    }

    fn take_body(&mut self, context: Context, manner: Manner) -> Result<(), Invalid> {
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
                return self.take_chunks(manner);
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

    fn take_chunks(&mut self, manner: Manner) -> Result<(), Invalid> {
        loop {
            let mut size = take_line(&mut self.rest, Manner::Strict)?;
            if let (Manner::Tolerant, Some(at)) =
                (manner, size.iter().position(|&byte| byte == b';'))
            {
                if !size[at..].iter().copied().all(is_text) {
                    return Err(Invalid("chunk extension"));
                }
                size = size[..at].trim_ascii_end();
            }
            match number(size, 16).ok_or(Invalid("chunk size"))? {
                0 => break,
                size => self.body.extend_from_slice(take(&mut self.rest, size)?),
            }
            if take(&mut self.rest, 2)? != b"\r\n" {
                return Err(Invalid("end of a chunk"));
            }
        }
        self.trailers = Some(take_fields(&mut self.rest, Manner::Strict)?);
        Ok(())
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Invalid> {
    let (taken, left) = rest.split_at_checked(length).ok_or(ENDED_EARLY)?;
    *rest = left;
    Ok(taken)
}

/// Takes a line, and returns it without its line end. A line must not contain CR, LF or NUL.
fn take_line<'a>(rest: &mut &'a [u8], manner: Manner) -> Result<&'a [u8], Invalid> {
    let end = rest.iter().position(|byte| b"\r\n\0".contains(byte));
    let line = take(rest, end.ok_or(ENDED_EARLY)?)?;
    if manner == Manner::Tolerant && rest.first() == Some(&b'\n') {
        take(rest, 1)?;
        return Ok(line);
    }
    match take(rest, 2)? {
        b"\r\n" => Ok(line),
        _ => Err(Invalid("end of a line")),
    }
}

fn first_line(line: &[u8], context: Context, manner: Manner) -> Result<[&str; 3], Invalid> {
    let tolerant = manner == Manner::Tolerant;
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let mut part = || parts.next().ok_or(Invalid("parts of the first line"));
    let (first, second) = (part()?, part()?);
    let third = match (part(), context) {
        (Err(_), Context::Response { .. }) if tolerant => b"",
        (third, _) => third?,
    };
    let is_version = |part: &[u8]| part == b"HTTP/1.1" || (tolerant && part == b"HTTP/1.0");
    let valid = match context {
        Context::Request => {
            is_token(first)
                && !second.is_empty()
                && !second.iter().any(u8::is_ascii_control)
                && is_version(third)
        }
        Context::Response { .. } => {
            is_version(first)
                && second.len() == 3
                && second.iter().all(u8::is_ascii_digit)
                && third.iter().copied().all(is_text)
        }
    };
    let text = |part| match std::str::from_utf8(part) {
        Ok(text) => Ok(text),
        // Only the reason phrase may have another encoding, and it means nothing.
        Err(_) if tolerant => Ok("\u{fffd}"),
        Err(_) => Err(Invalid("encoding of the first line")),
    };
    match valid {
        true => Ok([text(first)?, text(second)?, text(third)?]),
        false => Err(Invalid("first line")),
    }
}

fn take_fields<'a>(
    rest: &mut &'a [u8],
    manner: Manner,
) -> Result<Vec<(&'a str, &'a [u8])>, Invalid> {
    let mut fields = Vec::new();
    loop {
        let line = take_line(rest, manner)?;
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
