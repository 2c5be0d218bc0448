//! Text of a bounded length.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// A text for people that has at most 1 KiB. What is longer is cut, when it is made and when it is
/// received: the sender may be a worker that was taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ShortText(String);

impl ShortText {
    /// The most bytes of a text.
    pub const LONGEST: usize = 1 << 10;
}

impl From<String> for ShortText {
    fn from(mut text: String) -> ShortText {
        if text.len() > ShortText::LONGEST {
            text.truncate(text.floor_char_boundary(ShortText::LONGEST));
            text.shrink_to_fit();
        }
        ShortText(text)
    }
}

impl From<&str> for ShortText {
    fn from(text: &str) -> ShortText {
        ShortText(text[..text.floor_char_boundary(ShortText::LONGEST)].to_owned())
    }
}

impl From<ShortText> for String {
    fn from(text: ShortText) -> String {
        text.0
    }
}

impl<'de> Deserialize<'de> for ShortText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ShortText, D::Error> {
        String::deserialize(deserializer).map(ShortText::from)
    }
}

impl Deref for ShortText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        let long = "ü".repeat(ShortText::LONGEST);
        let json = serde_json::to_string(&long).unwrap();
        let cut: ShortText = serde_json::from_str(&json).unwrap();
        assert_eq!(&*cut, "ü".repeat(ShortText::LONGEST / 2));
        assert_eq!(ShortText::from(&*long), cut);
        assert_eq!(
            ShortText::from("x".to_owned() + &long).len(),
            ShortText::LONGEST - 1
        );
        assert_eq!(&*ShortText::from("short"), "short");
    }
}
