//! Faults of YAML's syntax, worded by what people mean when they cause them.
//!
//! The parser says where it is stuck and which rule of YAML was broken. That is often behind the
//! fault, and rarely in words of whoever writes a configuration, so this module looks at the lines
//! around the place for the usual causes.

use super::fault::{Position, shorten};

use super::source::Source;

/// A bracket that is not closed at the place of a fault, and where it stands.
pub(super) type OpenBracket = Option<(char, Position)>;

/// Words a fault that the parser has found at `at`, and says where it really is.
pub(super) fn word(
    source: &Source,
    at: Position,
    info: &str,
    open: OpenBracket,
) -> (Position, String) {
    let causes = [
        tab_in_indentation(source, at),
        tab_behind_colon(source, at, info),
        missing_quotes(source, at, info, open.is_some()),
        missing_space(source, at, info),
        colon_in_value(source, at, info),
        deeper_than_before(source, at, info),
        quotes(info, at, open.is_some()),
        another_language(source, at, info),
    ];
    if let Some(found) = causes.into_iter().flatten().next() {
        return found;
    }
    let message = match open {
        Some((bracket, from)) => format!(
            "not valid YAML: {info}; the `{bracket}` of line {} is still open here",
            from.line
        ),
        None => format!("not valid YAML: {info}"),
    };
    (at, message)
}

/// Words the fault of an alias whose anchor exists.
pub(super) fn alias() -> String {
    "an alias (`*…`) is not followed here; write the value itself, in quotes if it begins with `*`"
        .to_owned()
}

/// Finds a tab that indents the line of the fault, or the line behind it, which the parser then
/// takes for a part of the value before.
fn tab_in_indentation(source: &Source, at: Position) -> Option<(Position, String)> {
    let has_tab = |number: &usize| {
        source.line(*number).is_some_and(|line| {
            line.trim_start_matches(' ').starts_with('\t') && !line.trim().is_empty()
        })
    };
    let line = [at.line, at.line + 1].into_iter().find(has_tab)?;
    let indent = source.line(line)?.chars().take_while(|c| *c == ' ').count();
    let at = Position {
        line,
        column: indent + 1,
    };
    let message = "a tab in the indentation; YAML wants spaces".to_owned();
    Some((at, message))
}

fn tab_behind_colon(source: &Source, at: Position, info: &str) -> Option<(Position, String)> {
    if !info.contains("must be followed by a valid YAML whitespace") {
        return None;
    }
    let (key, value) = source.line(at.line)?.split_once(":\t")?;
    let column = key.chars().count() + 2;
    let at = Position { column, ..at };
    let (key, value) = (shorten(key.trim()), shorten(value.trim()));
    let message = format!("a tab stands behind the colon; write a space: `{key}: {value}`");
    Some((at, message))
}

/// Finds a value that begins with, or in brackets has, a character that means something to YAML.
fn missing_quotes(
    source: &Source,
    at: Position,
    info: &str,
    in_brackets: bool,
) -> Option<(Position, String)> {
    let line = source.line(at.line)?;
    let skipped: usize = line.chars().take(at.column - 1).map(char::len_utf8).sum();
    let (before, rest) = line.split_at(skipped);
    let first = rest.chars().next()?;
    let ends = |c: char| c == '#' || (in_brackets && matches!(c, ',' | ']'));
    let end = rest.find(ends).unwrap_or(rest.len());
    let value = rest[..end].trim();
    let message = match first {
        '*' if info.contains("anchor") && value == "*" => {
            "`*` has a meaning of its own in YAML; for any host write `_`, else put it into quotes: `\"*\"`"
                .to_owned()
        }
        '*' if info.contains("anchor") => quote(value, "begins with `*`, which is an alias to YAML"),
        '@' | '`' | '%' if info.contains("unexpected character") => {
            quote(value, &format!("begins with `{first}`, which YAML reserves"))
        }
        // `[--port={port}]`: the fault is at the brace, and the value has begun before it.
        '{' if in_brackets && info.contains("flow sequence") => {
            let begin = before.rfind([',', '[']).map_or(0, |at| at + 1);
            let whole = &line[begin..];
            let end = whole.find([',', ']']).unwrap_or(whole.len());
            let whole = whole[..end].trim();
            quote(whole, "has a brace, which begins a mapping in YAML")
        }
        _ => return None,
    };
    Some((at, message))
}

fn quote(value: &str, why: &str) -> String {
    let shown = shorten(value).replace("\\\"", "\"");
    format!("`{shown}` {why}; put it into quotes: `\"{shown}\"`")
}

/// Finds a line such as `port:80`. The parser takes it for a value that goes on, and notices the
/// fault in the line behind it.
fn missing_space(source: &Source, at: Position, info: &str) -> Option<(Position, String)> {
    if !info.contains("simple key") && !info.contains("mapping values are not allowed") {
        return None;
    }
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let mut before = (1..at.line).rev();
    let before = before.find(|number| source.line(*number).is_some_and(|line| !is_blank(line)));
    let mut suspects = [Some(at.line), before].into_iter().flatten();
    suspects.find_map(|number| {
        let line = source.line(number)?;
        let (value, message) = dash_without_space(line).or_else(|| colon_without_space(line))?;
        let column = line.chars().count() - value.chars().count() + 1;
        let at = Position {
            line: number,
            column,
        };
        Some((at, message))
    })
}

/// Returns the value in a line such as `-80`, with a message.
fn dash_without_space(line: &str) -> Option<(&str, String)> {
    let value = line.trim_start().strip_prefix('-')?;
    let message = format!(
        "a space is missing behind the `-`: write `- {}`",
        shorten(value)
    );
    (!value.starts_with([' ', '-'])).then_some((value, message))
}

/// Returns the value in a line such as `port:80`, with a message.
fn colon_without_space(line: &str) -> Option<(&str, String)> {
    let text = line.trim_start();
    let text = text.strip_prefix("- ").unwrap_or(text).trim_start();
    let (key, value) = text.split_once(':')?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_key = !key.is_empty() && key.chars().all(is_letter);
    let is_value = !value.is_empty() && !value.starts_with([' ', '\t']) && !value.starts_with("//");
    let shown = shorten(value.trim());
    let message = format!("a space is missing behind the colon: write `{key}: {shown}`");
    (is_key && is_value).then_some((value, message))
}

/// Finds a value with a colon and a space in it, as in `ready: http: /health`.
fn colon_in_value(source: &Source, at: Position, info: &str) -> Option<(Position, String)> {
    if !info.contains("mapping values are not allowed") {
        return None;
    }
    let line = source.line(at.line)?.trim();
    let (key, value) = line.split_once(": ")?;
    let value = value.trim();
    if !value.contains(": ") && !value.ends_with(':') {
        return None;
    }
    let shown = shorten(value).replace("\\\"", "\"");
    let message = format!(
        "the value of `{}` has a colon in it that YAML takes for another key; put it into quotes: `\"{shown}\"`",
        shorten(key)
    );
    Some((at, message))
}

/// Finds a key that is indented more than the line above it, which has a value already.
fn deeper_than_before(source: &Source, at: Position, info: &str) -> Option<(Position, String)> {
    let line = source.line(at.line)?;
    let indent = line.len() - line.trim_start_matches(' ').len();
    if !info.contains("mapping values are not allowed") || indent == 0 {
        return None;
    }
    let (key, _) = line.trim().split_once(':')?;
    let message = format!(
        "`{}` is indented more than the line above it; keys of one mapping begin in the same column",
        shorten(key)
    );
    let column = indent + 1;
    Some((Position { column, ..at }, message))
}

fn quotes(info: &str, at: Position, in_brackets: bool) -> Option<(Position, String)> {
    let message = if info.contains("quoted scalar")
        && (info.contains("end of stream") || info.contains("indentation"))
    {
        "a quote is opened here and not closed"
    } else if info.contains("trailing content after") && info.contains("quoted") {
        match in_brackets {
            true => "a comma is missing before this value",
            false => "something stands behind the closing quote; put the whole value into quotes",
        }
    } else {
        return None;
    };
    Some((at, message.to_owned()))
}

/// Finds a file in the syntax of another kind of file, such as `[service]` and `name = "x"`.
fn another_language(source: &Source, at: Position, info: &str) -> Option<(Position, String)> {
    let is_other = info.contains("document start") && source.line(at.line)?.contains('=');
    is_other.then(|| {
        let message = "the file has to consist of lines `key: value`, not `key = value`";
        (at, message.to_owned())
    })
}
