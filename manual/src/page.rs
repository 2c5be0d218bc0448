//! A manual page in the making, in the language of man(7).

use std::fmt::Write;

/// Longer lines are bad style in a page's source (mandoc(1)).
const LINE: usize = 78;

/// Nobody finds a key or copies a command that is hyphenated.
const NO_HYPHENS: &str = ".nh";

/// A page that grows from its beginning to its end.
#[derive(Debug)]
pub struct Page {
    out: String,
    /// Whether something stands above that the next paragraph is to keep its distance from.
    apart: bool,
    /// How many items are open.
    items: usize,
}

/// Text in which everything that means something to roff is escaped.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Adds text as it is read.
    pub fn plain(&mut self, text: &str) {
        self.0.push_str(&escape(text));
    }

    /// Adds what is typed.
    pub fn literal(&mut self, text: &str) {
        self.bold(true);
        self.plain(text);
        self.bold(false);
    }

    /// Begins or ends what is typed.
    pub fn bold(&mut self, begins: bool) {
        self.0.push_str(if begins { "\\fB" } else { "\\fR" });
    }

    /// Begins or ends what something else stands for.
    pub fn italic(&mut self, begins: bool) {
        self.0.push_str(if begins { "\\fI" } else { "\\fR" });
    }

    /// Adds another text.
    pub fn push(&mut self, other: &Text) {
        self.0.push_str(&other.0);
    }

    /// There is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Hyphens, accents and quotes are to stay what they are: most of them are to be typed or searched for, and roff would make
/// typography of them.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('\'', "\\(aq")
        .replace('-', "\\-")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti")
        .replace('`', "\\(ga")
}

impl Page {
    /// Begins a page with that name in that section of the manual.
    pub fn new(name: &str, section: u8, about: &str) -> Page {
        let mut page = Page {
            out: String::new(),
            apart: false,
            items: 0,
        };
        let title = name.to_uppercase();
        let version = env!("CARGO_PKG_VERSION");
        // Without a date, so that the same source makes the same page.
        page.line(&format!(
            ".TH {title} {section} \"\" \"smoothserve {version}\" smoothserve"
        ));
        page.line(".ad l");
        // Where a line of the source ends says nothing about what follows.
        page.line(".ss 12 0");
        page.line(NO_HYPHENS);
        page.section("Name");
        page.fill(&Text(format!("{name} \\- {about}")));
        page
    }

    /// The whole page.
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
        // Names are searched for as they are written.
        let shout = |word: &str| match word.contains('.') {
            true => word.to_owned(),
            false => word.to_uppercase(),
        };
        let words: Vec<String> = title.split(' ').map(shout).collect();
        self.heading("SH", &words.join(" "));
    }

    /// Begins a part of a section.
    pub fn subsection(&mut self, title: &str) {
        self.heading("SS", title);
    }

    fn heading(&mut self, request: &str, title: &str) {
        self.end_items(0);
        self.line(&format!(".{request} \"{}\"", escape(title)));
        self.apart = false;
    }

    /// Adds a command line: the name of the program and what may stand behind it.
    pub fn synopsis(&mut self, program: &str, operands: &Text) {
        self.line(&format!(".SY {}", escape(program)));
        self.fill(operands);
        self.line(".YS");
        // groff's own synopsis hyphenates again what follows.
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

    /// Begins an item: what is explained. What follows explains it.
    pub fn begin_item(&mut self, term: &Text) {
        self.keep_distance();
        self.fill(term);
        self.line(".RS 4");
        self.apart = false;
        self.items += 1;
    }

    /// How many items are open.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Ends items until so many are open.
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

    /// Breaks the source where a word ends; what the reader sees is broken elsewhere.
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
            // At the beginning of a line this would be a request.
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
