//! Text with colors, safe to print, laid out for the width of a terminal. Pure.
//!
//! On a narrow terminal the cells of tables are cut and paragraphs are wrapped, so that columns
//! stay columns. A number is never cut, because half of it would be another number: if the columns
//! do not fit, the last ones are left out.

use crate::printable::printable_line;

/// The color of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    /// The color of the terminal.
    Plain,
    /// What is as it should be.
    Green,
    /// What waits, or needs a look.
    Yellow,
    /// What has failed.
    Red,
}

impl Color {
    fn code(self) -> Option<&'static str> {
        match self {
            Color::Plain => None,
            Color::Green => Some("32"),
            Color::Yellow => Some("33"),
            Color::Red => Some("31"),
        }
    }
}

/// A piece of a line, in one color. Text of others is made safe to print when the piece is made.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    text: String,
    color: Color,
}

impl Piece {
    /// Makes a piece of this color.
    pub(super) fn new(text: &str, color: Color) -> Piece {
        let text = printable_line(text);
        Piece { text, color }
    }

    /// Makes a piece of the terminal's color.
    pub(super) fn plain(text: &str) -> Piece {
        Piece::new(text, Color::Plain)
    }

    fn width(&self) -> usize {
        width(&self.text)
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// The title above the column.
    pub(super) title: &'static str,
    /// True if cells may be cut. Numbers may not.
    pub(super) may_be_cut: bool,
}

impl Column {
    /// Makes a column of text.
    pub(super) const fn text(title: &'static str) -> Column {
        Column {
            title,
            may_be_cut: true,
        }
    }

    /// Makes a column of numbers, or of words that are short.
    pub(super) const fn whole(title: &'static str) -> Column {
        Column {
            title,
            may_be_cut: false,
        }
    }
}

/// The width that a cut cell keeps, if there is so much of it.
const LEAST_CELL: usize = 8;

/// The least room for a paragraph. On a terminal narrower than that, the terminal breaks the lines.
const LEAST_ROOM: usize = 20;

/// Lines of colored text for a place of this width.
#[derive(Debug)]
pub(super) struct Text {
    /// The number of columns of the terminal; `None` if lines may have any length.
    room: Option<usize>,
    lines: Vec<Vec<Piece>>,
    is_cut: bool,
}

impl Text {
    /// Makes a text without a line, for a terminal of this width, or for lines of any length.
    pub(super) fn new(room: Option<usize>) -> Text {
        Text {
            room,
            lines: Vec::new(),
            is_cut: false,
        }
    }

    /// Returns true if a cell was cut, or a column left out.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Adds an empty line.
    pub(super) fn gap(&mut self) {
        self.lines.push(Vec::new());
    }

    /// Adds a paragraph that begins with these pieces. Its further lines, those of `body` and those
    /// that are too long for the terminal, begin `indent` columns further right than the first.
    pub(super) fn paragraph(&mut self, begin: Vec<Piece>, body: &str, indent: usize) {
        let begin_width: usize = begin.iter().map(Piece::width).sum();
        let mut first = Some((begin, begin_width));
        for line in body.lines() {
            let line = printable_line(line);
            let (line, lead) = match &first {
                Some(_) => (line.as_str(), 0),
                // What is indented already stays as far apart from the margin.
                None => (line.trim_start_matches(' '), indent.max(leading(&line))),
            };
            let used = first.as_ref().map_or(lead, |(_, width)| *width);
            let hanging = if first.is_some() { indent } else { lead };
            for piece in self.wrapped(line, used, hanging) {
                let mut pieces = match first.take() {
                    Some((begin, _)) => begin,
                    None => vec![Piece::plain(&" ".repeat(hanging))],
                };
                pieces.push(Piece::plain(&piece));
                self.lines.push(pieces);
            }
        }
        if let Some((begin, _)) = first {
            self.lines.push(begin);
        }
    }

    /// Breaks a line between words, and words that are longer than a line. The first line has
    /// `used` columns less, the others `hanging` ones.
    fn wrapped(&self, line: &str, used: usize, hanging: usize) -> Vec<String> {
        let Some(width_of_all) = self.room else {
            return vec![line.to_owned()];
        };
        let room = |used: usize| width_of_all.saturating_sub(used).max(LEAST_ROOM);
        let mut lines = Vec::new();
        let mut current = String::new();
        let mut left = room(used);
        for (index, word) in line.replace('\t', "    ").split(' ').enumerate() {
            let mut word = word;
            if index > 0 {
                match width(word) < left {
                    true => {
                        current.push(' ');
                        left -= 1;
                    }
                    false => {
                        lines.push(std::mem::take(&mut current));
                        left = room(hanging);
                    }
                }
            }
            while width(word) > left {
                let (head, rest) = word.split_at(offset(word, left));
                lines.push(std::mem::take(&mut current) + head);
                left = room(hanging);
                word = rest;
            }
            current.push_str(word);
            left -= width(word);
        }
        lines.push(current);
        lines
    }

    /// Adds rows below the titles of their columns. The columns are in the order of their
    /// importance.
    pub(super) fn table<const COLUMNS: usize>(
        &mut self,
        columns: [Column; COLUMNS],
        rows: Vec<[Piece; COLUMNS]>,
    ) {
        let titles = columns.map(|column| Piece::plain(column.title));
        let rows: Vec<[Piece; COLUMNS]> = [titles].into_iter().chain(rows).collect();
        let natural = |column: usize| rows.iter().map(|row| row[column].width()).max();
        let natural: Vec<usize> = (0..COLUMNS).map(|at| natural(at).unwrap_or(0)).collect();
        let layout = Layout::of(&columns, &natural, self.room);
        self.is_cut |= layout.widths != natural;
        for row in rows {
            let mut pieces: Vec<Piece> = Vec::new();
            for (cell, width) in row.into_iter().zip(&layout.widths) {
                let text = cut(&cell.text, *width);
                let gap = width - self::width(&text) + layout.gap;
                let color = cell.color;
                pieces.push(Piece { text, color });
                pieces.push(Piece::plain(&" ".repeat(gap)));
            }
            while pieces
                .last()
                .is_some_and(|piece| piece.text.trim().is_empty())
            {
                pieces.pop();
            }
            self.lines.push(pieces);
        }
    }

    /// Returns the lines, each with its end.
    pub(super) fn lines(&self, has_colors: bool) -> String {
        let mut text = String::new();
        for line in &self.lines {
            for piece in line {
                match piece.color.code().filter(|_| has_colors) {
                    Some(code) => text += &format!("\x1b[{code}m{}\x1b[0m", piece.text),
                    None => text += &piece.text,
                }
            }
            text.push('\n');
        }
        text
    }
}

/// The widths of the columns that are shown, and the gap between them.
#[derive(Debug)]
struct Layout {
    widths: Vec<usize>,
    gap: usize,
}

impl Layout {
    /// Finds the widths of as many columns as fit.
    fn of(columns: &[Column], natural: &[usize], room: Option<usize>) -> Layout {
        let Some(room) = room else {
            let widths = natural.to_vec();
            return Layout { widths, gap: 2 };
        };
        let total = |widths: &[usize], gap: usize| {
            widths.iter().sum::<usize>() + gap * widths.len().saturating_sub(1)
        };
        for count in (1..=columns.len()).rev() {
            let mut widths = natural[..count].to_vec();
            for gap in [2, 1] {
                if total(&widths, gap) <= room {
                    return Layout { widths, gap };
                }
            }
            while total(&widths, 1) > room {
                let cuttable = (0..count).filter(|&at| columns[at].may_be_cut);
                let widest = cuttable.max_by_key(|&at| widths[at]);
                match widest.filter(|&at| widths[at] > LEAST_CELL) {
                    Some(at) => widths[at] -= 1,
                    None => break,
                }
            }
            if total(&widths, 1) <= room {
                return Layout { widths, gap: 1 };
            }
        }
        let widths = vec![natural[0].min(room)];
        Layout { widths, gap: 1 }
    }
}

/// Cuts a line to a number of columns.
pub(super) fn cut(line: &str, columns: usize) -> String {
    if width(line) <= columns {
        return line.to_owned();
    }
    match columns {
        0 => String::new(),
        _ => line[..offset(line, columns - 1)].to_owned() + "…",
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn leading(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Returns where the character of this number begins.
fn offset(text: &str, character: usize) -> usize {
    let mut offsets = text.char_indices();
    offsets
        .nth(character)
        .map_or(text.len(), |(offset, _)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column::text("NAME"),
        Column::whole("REQUESTS"),
        Column::text("SITES"),
    ];

    fn shown(room: Option<usize>) -> (String, bool) {
        let mut text = Text::new(room);
        let row = |name, requests, sites| [name, requests, sites].map(Piece::plain);
        let rows = vec![
            row("shop", "1234567890", "shop.example www.shop.example"),
            row("a-long-name", "2", ""),
        ];
        text.table(COLUMNS, rows);
        (text.lines(false), text.is_cut())
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_no_wider_than_the_terminal() {
        let whole = "\
NAME         REQUESTS    SITES
shop         1234567890  shop.example www.shop.example
a-long-name  2
";
        assert_eq!(shown(None), (whole.to_owned(), false));
        assert_eq!(shown(Some(54)), (whole.to_owned(), false));
        let close = "\
NAME        REQUESTS   SITES
shop        1234567890 shop.example www.sh…
a-long-name 2
";
        assert_eq!(shown(Some(43)), (close.to_owned(), true));
        let narrow = "\
NAME     REQUESTS   SITES
shop     1234567890 shop.ex…
a-long-… 2
";
        assert_eq!(shown(Some(28)), (narrow.to_owned(), true));
        let narrowest = "\
NAME      REQUESTS
shop      1234567890
a-long-n… 2
";
        assert_eq!(shown(Some(20)), (narrowest.to_owned(), true));
        assert_eq!(shown(Some(3)).0, "NA…\nsh…\na-…\n");
        for room in 1..80 {
            let (text, _) = shown(Some(room));
            assert!(
                text.lines().all(|line| width(line) <= room),
                "{room}: {text}"
            );
        }
    }

    #[test]
    fn paragraphs_are_wrapped_and_lose_nothing() {
        let begin = || vec![Piece::new("shop", Color::Red), Piece::plain(": ")];
        let body = "exited with status 3\n  log: no such table: orders";
        let mut text = Text::new(None);
        text.paragraph(begin(), body, 2);
        let whole = "shop: exited with status 3\n  log: no such table: orders\n";
        assert_eq!(text.lines(false), whole);
        let mut text = Text::new(Some(26));
        text.paragraph(begin(), body, 2);
        text.paragraph(vec![Piece::plain("file  ")], &"/".repeat(45), 6);
        let wrapped = "\
shop: exited with status 3
  log: no such table:
  orders
file  ////////////////////
      ////////////////////
      /////
";
        assert_eq!(text.lines(false), wrapped);
        assert!(!text.is_cut());
    }

    #[test]
    fn colors_are_ours_alone() {
        let mut text = Text::new(None);
        text.paragraph(vec![Piece::new("a\x1b[31mb", Color::Green)], "\x1b[0m", 0);
        assert_eq!(text.lines(true), "\x1b[32ma\\x1b[31mb\x1b[0m\\x1b[0m\n");
        assert_eq!(text.lines(false), "a\\x1b[31mb\\x1b[0m\n");
    }

    #[test]
    fn lines_are_cut_to_the_terminal() {
        assert_eq!(
            (cut("abcdef", 6), cut("abcdef", 5), cut("ab", 0)),
            ("abcdef".into(), "abcd…".into(), String::new())
        );
    }
}
