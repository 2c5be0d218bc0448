//! Converts Markdown into parts of a manual page.
//!
//! A page has 80 columns, too few for most tables. So a row becomes an item: the first cell is the
//! term, the last cell explains it, and the cells between follow the term with the names of their
//! columns. A heading of the third level is an item, too, explained by everything below it. Links
//! are dropped, except those to the examples.

use std::mem;

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};

use crate::page::{Page, Text};

/// What the references link to, and where `make install` puts it.
const EXAMPLES: (&str, &str) = ("../services/", "/usr/share/doc/smoothserve/examples/");

/// Adds Markdown to a page; headings of the first level become sections.
pub fn add(page: &mut Page, markdown: &str) {
    let mut converter = Converter {
        around: page.items(),
        page,
        text: Text::default(),
        heading: None,
        code: None,
        link: None,
        rows: Vec::new(),
    };
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        converter.take(event);
    }
    let around = converter.around;
    page.end_items(around);
}

struct Converter<'p, 'm> {
    page: &'p mut Page,
    /// The number of items that were open before.
    around: usize,
    /// The text so far of the next paragraph, cell or list line.
    text: Text,
    /// The title being read.
    heading: Option<String>,
    /// The lines of code being read.
    code: Option<String>,
    link: Option<CowStr<'m>>,
    /// The rows of the table being read, its header first.
    rows: Vec<Vec<Text>>,
}

impl<'m> Converter<'_, 'm> {
    fn take(&mut self, event: Event<'m>) {
        match event {
            Event::Start(Tag::Heading { .. }) => self.heading = Some(String::new()),
            Event::Text(words) | Event::Code(words) if self.heading.is_some() => {
                self.heading.get_or_insert_default().push_str(&words);
            }
            Event::End(TagEnd::Heading(level)) => {
                let title = self.heading.take().unwrap_or_default();
                self.page.end_items(self.around);
                match level as usize {
                    1 => self.page.section(&title),
                    2 => self.page.subsection(&title),
                    _ => {
                        let mut term = Text::default();
                        term.literal(&title);
                        self.page.begin_item(&term);
                    }
                }
            }
            Event::Start(Tag::CodeBlock(_)) => self.code = Some(String::new()),
            Event::Text(lines) if self.code.is_some() => {
                self.code.get_or_insert_default().push_str(&lines);
            }
            Event::End(TagEnd::CodeBlock) => {
                let lines = self.code.take().unwrap_or_default();
                self.page.code(&lines);
            }
            Event::End(TagEnd::Paragraph) => {
                let text = mem::take(&mut self.text);
                self.page.paragraph(&text);
            }
            Event::Start(Tag::List(None)) if self.text.is_empty() => {}
            Event::Start(Tag::Item) => self.page.bullet(),
            Event::End(TagEnd::Item) if self.text.is_empty() => {}
            Event::End(TagEnd::Item) => {
                let text = mem::take(&mut self.text);
                self.page.paragraph(&text);
            }
            Event::Start(Tag::TableHead | Tag::TableRow) => self.rows.push(Vec::new()),
            Event::End(TagEnd::TableCell) => {
                let text = mem::take(&mut self.text);
                self.rows
                    .last_mut()
                    .expect("every cell is in a row")
                    .push(text);
            }
            Event::End(TagEnd::Table) => {
                let rows = mem::take(&mut self.rows);
                self.table(&rows);
            }
            Event::Start(Tag::Link { dest_url, .. }) => self.link = Some(dest_url),
            Event::End(TagEnd::Link) => {
                let target = self.link.take();
                let target = target.as_deref().unwrap_or_default();
                if let Some(example) = target.strip_prefix(EXAMPLES.0) {
                    self.text.plain(&format!(" ({}{example})", EXAMPLES.1));
                }
            }
            Event::Text(words) => self.text.plain(&words),
            Event::Code(words) => self.text.literal(&words),
            Event::SoftBreak => self.text.plain(" "),
            Event::Start(Tag::Strong) => self.text.bold(true),
            Event::End(TagEnd::Strong) => self.text.bold(false),
            Event::Start(Tag::Emphasis) => self.text.italic(true),
            Event::End(TagEnd::Emphasis) => self.text.italic(false),
            Event::Start(Tag::Paragraph | Tag::Table(_) | Tag::TableCell)
            | Event::End(TagEnd::TableHead | TagEnd::TableRow | TagEnd::List(_)) => {}
            other => panic!("manual pages do not support this Markdown: {other:?}"),
        }
    }

    fn table(&mut self, rows: &[Vec<Text>]) {
        let Some((head, rows)) = rows.split_first() else {
            return;
        };
        for row in rows {
            let [first, between @ .., last] = row.as_slice() else {
                continue;
            };
            let mut term = Text::default();
            term.push(first);
            let mut separator = " (";
            for (title, cell) in head[1..].iter().zip(between) {
                if !cell.is_empty() {
                    term.plain(separator);
                    term.push(title);
                    term.plain(": ");
                    term.push(cell);
                    separator = "; ";
                }
            }
            if separator != " (" {
                term.plain(")");
            }
            let open = self.page.items();
            self.page.begin_item(&term);
            if !last.is_empty() {
                self.page.paragraph(last);
            }
            self.page.end_items(open);
        }
    }
}
