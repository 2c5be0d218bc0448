//! A manual page under construction, in the language of man(7).

use std::fmt::Write;

/// The longest line of a page's source; longer ones are bad style (mandoc(1)).
const LINE: usize = 78;

/// The request that turns hyphenation off: readers could not search for a hyphenated key or copy a
/// hyphenated command.
const NO_HYPHENS: &str = ".nh";

/// A page that is written from beginning to end.
#[derive(Debug)]
pub struct Page {
    out: String,
    /// True if the next paragraph needs a blank line before it.
    apart: bool,
    /// The number of open items.
    items: usize,
}

/// Text in which all characters with a meaning in roff are escaped.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Adds text as it is read.
    pub fn plain(&mut self, text: &str) {
        self.0.push_str(&escape(text));
    }

    /// Adds text that the reader types.
    pub fn literal(&mut self, text: &str) {
        self.bold(true);
        self.plain(text);
        self.bold(false);
    }

    /// Begins or ends text that the reader types.
    pub fn bold(&mut self, begins: bool) {
        self.0.push_str(if begins { "\\fB" } else { "\\fR" });
    }

    /// Begins or ends a placeholder.
    pub fn italic(&mut self, begins: bool) {
        self.0.push_str(if begins { "\\fI" } else { "\\fR" });
    }

    /// Adds another text.
    pub fn push(&mut self, other: &Text) {
        self.0.push_str(&other.0);
    }

    /// Returns true if the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Escapes text for roff. Hyphens, accents and quotes stay as they are, because readers type most
/// of them or search for them; roff would replace them typographically.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('\'', "\\(aq")
        .replace('-', "\\-")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti")
        .replace('`', "\\(ga")
}

impl Page {
    /// Begins a page with this name in this section of the manual.
    pub fn new(name: &str, section: u8, about: &str) -> Page {
        let mut page = Page {
            out: String::new(),
            apart: false,
            items: 0,
        };
        let title = name.to_uppercase();
        let version = env!("CARGO_PKG_VERSION");
        // The page has no date, so that the same source always makes the same page.
        page.line(&format!(
            ".TH {title} {section} \"\" \"smoothserve {version}\" smoothserve"
        ));
        page.line(".ad l");
        // The end of a source line must not affect the spacing between sentences.
        page.line(".ss 12 0");
        page.line(NO_HYPHENS);
        page.section("Name");
        page.fill(&Text(format!("{name} \\- {about}")));
        page
    }

    /// Returns the whole page.
    pub fn finish(mut self) -> String {
        self.end_items(0);
        self.out
    }

    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        // Titles are uppercase, but names of files are searched for as they are written.
        let shout = |word: &str| match word.contains('.') {
            true => word.to_owned(),
            false => word.to_uppercase(),
        };
        let words: Vec<String> = title.split(' ').map(shout).collect();
        self.heading("SH", &words.join(" "));
    }

    /// Begins a subsection.
    pub fn subsection(&mut self, title: &str) {
        self.heading("SS", title);
    }

    fn heading(&mut self, request: &str, title: &str) {
        self.end_items(0);
        self.line(&format!(".{request} \"{}\"", escape(title)));
        self.apart = false;
    }

    /// Adds a command line: the name of the program and its operands.
    pub fn synopsis(&mut self, program: &str, operands: &Text) {
        self.line(&format!(".SY {}", escape(program)));
        self.fill(operands);
        self.line(".YS");
        // groff's own synopsis turns hyphenation on again.
        self.line(NO_HYPHENS);
        self.apart = true;
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &Text) {
        self.keep_distance();
        self.fill(text);
        self.apart = true;
    }

    /// Makes the next paragraph a line of a list.
    pub fn bullet(&mut self) {
        self.line(".IP \\(bu 2");
        self.apart = false;
    }

    /// Adds lines as they are typed.
    pub fn code(&mut self, lines: &str) {
        self.keep_distance();
        self.line(".RS 4");
        self.line(".nf");
        for line in lines.lines() {
            let line = escape(line);
            let guard = if line.starts_with('.') { "\\&" } else { "" };
            self.line(&format!("{guard}{line}"));
        }
        self.line(".fi");
        self.line(".RE");
        self.apart = true;
    }

    /// Begins an item with its term. The text that follows explains the term.
    pub fn begin_item(&mut self, term: &Text) {
        self.keep_distance();
        self.fill(term);
        self.line(".RS 4");
        self.apart = false;
        self.items += 1;
    }

    /// Returns the number of open items.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Ends items until this number of them is open.
    pub fn end_items(&mut self, left: usize) {
        while self.items > left {
            self.line(".RE");
            self.items -= 1;
            self.apart = true;
        }
    }

    fn keep_distance(&mut self) {
        if self.apart {
            self.line(".PP");
        }
    }

    /// Adds text, breaking the source lines between words. These breaks do not show on the page.
    fn fill(&mut self, text: &Text) {
        let mut length = 0;
        for word in text.0.split_ascii_whitespace() {
            let breaks = length > 0 && length + 1 + word.len() > LINE;
            if breaks {
                self.out.push('\n');
                length = 0;
            } else if length > 0 {
                self.out.push(' ');
                length += 1;
            }
            // A leading dot would be a roff request.
            let guard = if length == 0 && word.starts_with('.') {
                "\\&"
            } else {
                ""
            };
            let _ = write!(self.out, "{guard}{word}");
            length += guard.len() + word.len();
        }
        if length > 0 {
            self.out.push('\n');
        }
    }
}
