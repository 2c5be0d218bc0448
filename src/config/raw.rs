//! YAML as a tree of nodes that know their positions.
//!
//! The tree is made from the parser's events, since a tree that forgets positions could report only
//! the first fault of a file. Scalars stay text; the key that they belong to says what they have to
//! be, so `port: "80"` and `name: 1` are fine.
//!
//! The tree is bounded: by the size of the file, in depth, and in the number of nodes. Aliases are
//! refused rather than expanded.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::fault::{Fault, Position};
use super::source::Source;
use super::syntax::{self, OpenBracket};

/// The deepest nesting: enough for every key, and for the `log:` of old files.
const MAX_DEPTH: usize = 16;

/// The most nodes of one file, more than any configuration has.
const MAX_NODES: usize = 100_000;

/// A value of YAML and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where the value begins.
    pub(super) at: Position,
    /// The value.
    pub(super) value: Value,
}

/// The value of a node.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A word, a number, a string.
    Scalar {
        /// The text without quotes and escapes.
        text: String,
        /// True if it is written without quotes.
        plain: bool,
    },
    /// A list: `[a, b]`, or lines with a dash.
    List(Vec<Node>),
    /// A mapping, `key: value`, in the order of the file. A key may occur more than once.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Returns true for a value that was left out, `null` or `~`.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain: true } => {
                matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// Names the kind of the value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "empty",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads the one document of a file. `None`: the file has no document, or an empty one.
pub(super) fn parse(source: &Source) -> Result<Option<Node>, Fault> {
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str(&source.text) {
        let (event, span) = match event {
            Ok(next) => next,
            Err(error) => {
                let at = position(*error.marker());
                let open = builder.open_bracket(source);
                let (at, message) = syntax::word(source, at, error.info(), open);
                return Err(source.fault(at, message));
            }
        };
        let at = position(span.start);
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
        }
        let added = if documents > 1 {
            Err("a second document begins here; a file holds one".to_owned())
        } else {
            builder.add(event, at)
        };
        added.map_err(|message| source.fault(at, message))?;
    }
    Ok(builder.root.filter(|root| !root.is_null()))
}

fn position(marker: Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// Builds the tree from events, with a stack of its own, so that depth costs no call stack.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    nodes: usize,
    root: Option<Node>,
}

/// A list or mapping whose end the parser has not reached.
enum Open {
    List(Position, Vec<Node>),
    Map(Position, Vec<(Node, Node)>, Option<Node>),
}

impl Builder {
    fn add(&mut self, event: Event<'_>, at: Position) -> Result<(), String> {
        let tag = match &event {
            Event::Scalar(_, _, _, tag) => tag.as_ref(),
            Event::SequenceStart(_, tag) | Event::MappingStart(_, tag) => tag.as_ref(),
            _ => None,
        };
        if let Some(tag) = tag {
            return Err(format!("the tag `{tag}` has no meaning here; remove it"));
        }
        match event {
            Event::Scalar(text, style, _, _) => self.close(Node {
                at,
                value: Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                },
            }),
            Event::SequenceStart(..) => self.open(Open::List(at, Vec::new())),
            Event::MappingStart(..) => self.open(Open::Map(at, Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(at, list)) => self.close(Node {
                    at,
                    value: Value::List(list),
                }),
                Some(Open::Map(at, map, _)) => self.close(Node {
                    at,
                    value: Value::Map(map),
                }),
                None => Ok(()),
            },
            Event::Alias(_) => Err(syntax::alias()),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    /// Finds the innermost bracket that is not closed.
    fn open_bracket(&self, source: &Source) -> OpenBracket {
        let (Open::List(at, _) | Open::Map(at, ..)) = self.open.last()?;
        let bracket = source.line(at.line)?.chars().nth(at.column - 1)?;
        matches!(bracket, '[' | '{').then_some((bracket, *at))
    }

    fn open(&mut self, open: Open) -> Result<(), String> {
        if self.open.len() == MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(open);
        Ok(())
    }

    /// Adds a complete node to the list or mapping that is open around it.
    fn close(&mut self, node: Node) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values in one file"));
        }
        match self.open.last_mut() {
            Some(Open::List(_, list)) => list.push(node),
            Some(Open::Map(_, map, key)) => match key.take() {
                Some(key) => map.push((key, node)),
                None => *key = Some(node),
            },
            None => self.root = Some(node),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{
        Strategy, TestCaseError, any, prop, prop_assert_eq, prop_oneof, proptest,
    };
    use std::path::Path;

    fn read(text: &str) -> Result<Option<Node>, Fault> {
        let source = Source::decode(Path::new("x.yaml"), text.as_bytes().to_vec())?;
        parse(&source)
    }

    fn message(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn keeps_order_text_and_positions() {
        let root = read("a: 1\n\"b\": [x, 'y']\n").unwrap().unwrap();
        let Value::Map(map) = root.value else {
            panic!("no mapping")
        };
        assert_eq!(map.len(), 2);
        let (key, value) = &map[1];
        assert_eq!(key.at, Position { line: 2, column: 1 });
        assert_eq!(value.at, Position { line: 2, column: 6 });
        let Value::List(list) = &value.value else {
            panic!("no list")
        };
        assert!(matches!(&list[0].value, Value::Scalar { text, plain: true } if text == "x"));
        assert!(matches!(&list[1].value, Value::Scalar { text, plain: false } if text == "y"));
        assert_eq!(
            list[1].at,
            Position {
                line: 2,
                column: 10
            }
        );
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "\n\n", "# only words\n", "---\n", "~", "null\n"] {
            assert!(read(text).unwrap().is_none(), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_single_plain_document() {
        assert!(message("a: 1\n---\nb: 2\n").contains("x.yaml:2:1: a second document"));
        assert!(message("a: &x [1]\nb: *x\n").contains("x.yaml:2:4: an alias"));
        assert!(message("a: !!binary aGk=\n").contains("the tag `"));
        assert!(message("a:\n\t- 1\n").contains("a tab in the indentation"));
        assert!(message("a: [1, 2\nb: 3\n").contains("not valid YAML"));
        assert!(message(&"[".repeat(100)).contains("nested deeper than 16"));
        assert!(message(&"[".repeat(100_000)).contains("not valid YAML: recursion limit"));
        assert!(message(&"- ".repeat(100_000)).contains("nested deeper than 16"));
        assert!(message(&format!("[{}]", "1,".repeat(100_001))).contains("more than 100000"));
    }

    /// What serde_yaml makes of a text, reduced to words as a configuration sees them.
    fn flat(value: &serde_yaml::Value) -> String {
        use serde_yaml::Value as Yaml;
        match value {
            Yaml::Null => "~".to_owned(),
            Yaml::Bool(value) => format!("={value}"),
            Yaml::Number(value) => format!("={value}"),
            Yaml::String(value) => format!("={value}"),
            Yaml::Sequence(items) => format!("{:?}", items.iter().map(flat).collect::<Vec<_>>()),
            Yaml::Mapping(map) => {
                format!(
                    "{:?}",
                    map.iter()
                        .map(|(key, value)| (flat(key), flat(value)))
                        .collect::<Vec<_>>()
                )
            }
            Yaml::Tagged(_) => unreachable!("tags are refused"),
        }
    }

    fn flat_node(node: &Node) -> String {
        match &node.value {
            _ if node.is_null() => "~".to_owned(),
            Value::Scalar { text, .. } => format!("={text}"),
            Value::List(items) => format!("{:?}", items.iter().map(flat_node).collect::<Vec<_>>()),
            Value::Map(map) => {
                format!(
                    "{:?}",
                    map.iter()
                        .map(|(key, value)| (flat_node(key), flat_node(value)))
                        .collect::<Vec<_>>()
                )
            }
        }
    }

    fn yaml() -> impl Strategy<Value = serde_yaml::Value> {
        let word = prop_oneof![
            any::<u32>().prop_map(serde_yaml::Value::from),
            any::<bool>().prop_map(serde_yaml::Value::from),
            "[ -~\\n\\tä€]{0,20}".prop_map(serde_yaml::Value::from),
        ];
        word.prop_recursive(3, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(serde_yaml::Value::from),
                prop::collection::btree_map("[a-z_]{1,8}", inner, 0..5).prop_map(|map| {
                    serde_yaml::Value::Mapping(
                        map.into_iter()
                            .map(|(key, value)| (key.into(), value))
                            .collect(),
                    )
                }),
            ]
        })
    }

    proptest! {
        /// Two readers that know nothing of each other agree on what the other one writes.
        #[test]
        fn what_serde_yaml_writes_is_read_as_it_was_meant(value in yaml()) {
            let text = serde_yaml::to_string(&value).unwrap();
            let node = read(&text).map_err(|fault| TestCaseError::fail(format!("{fault} in {text}")))?;
            prop_assert_eq!(node.as_ref().map_or("~".to_owned(), flat_node), flat(&value), "{}", text);
        }
    }
}
