//! Text that others have written, made safe to print.
//!
//! Instances, files and other machines write names, messages and output. If such text reaches a
//! terminal as it is, control characters in it can move the cursor, change the title, or send
//! input; characters that only format text can make a line read as something else. All text that
//! may be from others passes through here on its way to people.

use std::fmt::Write;

/// Returns the text with all characters escaped that a terminal would act on or not show. Tabs and
/// line ends stay.
pub fn printable(text: &str) -> String {
    escaped(text, true)
}

/// Returns the text as one line: like [`printable`], but line ends are escaped, too.
pub fn printable_line(text: &str) -> String {
    escaped(text, false)
}

/// Returns a text to be quoted in a message: as one line, cut to about 60 characters.
pub fn quotable(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = printable_line(&text.chars().take(LONGEST + 1).collect::<String>());
    if let Some((cut, _)) = shown.char_indices().nth(LONGEST) {
        shown.truncate(cut);
        shown.push('…');
    }
    shown
}

/// Returns JSON in which such characters are written as `\u001b`, so that it means the same and is
/// safe to print. In JSON these characters can only be part of strings.
pub fn printable_json(json: &str) -> String {
    let mut printable = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\t' | '\n' | '\r') || !is_deceptive(c) {
            printable.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(printable, "\\u{unit:04x}");
        }
    }
    printable
}

/// Escapes a text. Works on bytes, because an instance may write megabytes of them.
fn escaped(text: &str, keeps_line_ends: bool) -> String {
    let mut printable = String::with_capacity(text.len());
    let bytes = text.as_bytes();
    // The text before `start` is done; from there to `end` nothing needs to be escaped.
    let (mut start, mut end) = (0, 0);
    while let Some(&byte) = bytes.get(end) {
        let length = match byte {
            b'\t' | b' '..=b'~' => {
                end += 1;
                continue;
            }
            b'\n' if keeps_line_ends => {
                end += 1;
                continue;
            }
            0..=0x7f => {
                printable.push_str(&text[start..end]);
                // What floods a log is often one byte, again and again.
                let same = bytes[end..].iter().take_while(|next| **next == byte);
                let count = same.count();
                printable.push_str(&escaped_ascii(byte).repeat(count));
                count
            }
            _ => {
                let c = text[end..].chars().next().unwrap_or_default();
                if !is_deceptive(c) {
                    end += c.len_utf8();
                    continue;
                }
                printable.push_str(&text[start..end]);
                let _ = write!(printable, "\\u{{{:x}}}", u32::from(c));
                c.len_utf8()
            }
        };
        end += length;
        start = end;
    }
    printable.push_str(&text[start..]);
    printable
}

fn escaped_ascii(byte: u8) -> String {
    match byte {
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        _ => format!("\\x{byte:02x}"),
    }
}

/// Returns true for characters that a terminal acts on (C0, DEL, C1), and for those that are not
/// seen but change how the text around them is shown or read: directions, line separators,
/// invisible characters, tags.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        for (text, shown) in [
            (
                "plain text, größe, 注文, 🦀\n\tnext",
                "plain text, größe, 注文, 🦀\n\tnext",
            ),
            ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\rb\x08\x7f\0\0ü", "a\\rb\\x08\\x7f\\x00\\x00ü"),
            ("user\u{202e}nimda\u{2066}", "user\\u{202e}nimda\\u{2066}"),
            ("pass\u{200b}word\u{feff}", "pass\\u{200b}word\\u{feff}"),
            ("\u{e0041}\u{2028}", "\\u{e0041}\\u{2028}"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(quotable("\x1b[1m"), "\\x1b[1m");
        assert_eq!(quotable(&"ü".repeat(60)), "ü".repeat(60));
        assert_eq!(quotable(&"ü".repeat(61)), "ü".repeat(60) + "…");
        assert_eq!(printable_line("one\ntwo\t\r\n"), "one\\ntwo\t\\r\\n");
    }

    proptest! {
        #[test]
        fn nothing_deceptive_is_left(text in any::<String>()) {
            let left = |text: &str| text.chars().any(|c| is_deceptive(c) && !"\t\n".contains(c));
            prop_assert!(!left(&printable(&text)));
            prop_assert!(!printable_line(&text).contains('\n'));
        }

        #[test]
        fn json_means_the_same(text in "(.|[\u{0}-\u{1f}\u{7f}-\u{9f}\u{200b}-\u{206f}\u{e0001}-\u{e0003}])*") {
            let json = serde_json::to_string(&text).unwrap();
            let printed = printable_json(&json);
            prop_assert!(!printed.chars().any(is_deceptive));
            prop_assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        }
    }
}
