//! The demo as text, while it happens.

use std::io::IsTerminal as _;

use crate::report::{CellReport, Cut, Report, Step};

/// Where the text goes: standard output, or nowhere.
pub(crate) struct Terminal {
    on: bool,
    colour: bool,
}

/// SGR codes of ECMA-48.
#[derive(Clone, Copy)]
enum Style {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
}

impl Terminal {
    /// Text if `on`; in colour on a terminal, unless NO_COLOR is set.
    pub(crate) fn new(on: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            on,
            colour: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// The title of a part.
    pub(crate) fn title(&self, text: &str) {
        self.line(&format!("\n{}", self.paint(Style::Bold, text)));
    }

    /// One thing that was done.
    pub(crate) fn step(&self, step: &Step) {
        let time = self.paint(Style::Dim, &format!("{:8.1} ms", step.milliseconds));
        self.line(&format!("{time}  {:<16} {}", step.by, step.what));
    }

    /// The table of connections: a row for each source, a column for each target,
    /// IPv4 and IPv6 in each cell.
    pub(crate) fn matrix(&self, rows: &[&str], columns: &[&str], cells: &[CellReport]) {
        let short = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
        let head: String = columns
            .iter()
            .map(|to| format!("{:>13}", short(to)))
            .collect();
        self.line(&self.paint(Style::Dim, &format!("{:<14}{head}", "from \\ to")));
        for from in rows {
            let mut line = format!("{:<14}", short(from));
            for to in columns {
                let cell: Vec<_> = cells
                    .iter()
                    .filter(|cell| cell.from == *from && cell.to == *to)
                    .collect();
                line += &self.cell(&cell);
            }
            self.line(&line);
        }
        self.line(&self.paint(Style::Dim, "IPv4/IPv6; ! is not as the manifests say"));
        for cell in cells.iter().filter(|cell| !cell.agrees) {
            let expected = if cell.expected {
                "an answer"
            } else {
                "no answer"
            };
            let text = format!(
                "{} to {} ({} {}): expected {expected}, {}",
                cell.from, cell.to, cell.protocol, cell.target, cell.observed,
            );
            self.line(&self.paint(Style::Red, &text));
        }
        let agree = cells.iter().filter(|cell| cell.agrees).count();
        let text = format!(
            "{agree} of {} connections came out as expected",
            cells.len()
        );
        let style = if agree == cells.len() {
            Style::Green
        } else {
            Style::Red
        };
        self.line(&self.paint(style, &text));
    }

    /// Open connections and when they were cut.
    pub(crate) fn cuts(&self, cuts: &[Cut]) {
        for cut in cuts {
            self.line(&format!(
                "{}  the open {} connection of {} to {} is cut",
                self.paint(Style::Dim, &format!("{:8.1} ms", cut.milliseconds)),
                cut.family,
                cut.from,
                cut.to,
            ));
        }
    }

    /// The last line.
    pub(crate) fn verdict(&self, report: &Report) {
        let (style, text) = if report.agrees {
            (
                Style::Green,
                "Everything came out as expected, and nothing is left behind",
            )
        } else {
            (Style::Red, "Not everything came out as expected")
        };
        let took = format!(" ({:.1} s).", report.milliseconds / 1e3);
        self.line(&format!("\n{}{took}", self.paint(style, text)));
    }

    /// The outcomes of one cell of the table, 13 columns wide.
    fn cell(&self, outcomes: &[&CellReport]) -> String {
        if outcomes.is_empty() {
            return format!("{:>13}", "-");
        }
        let text = outcomes
            .iter()
            .map(|cell| {
                let said = if cell.observed.is_answered() {
                    "yes"
                } else {
                    "no"
                };
                format!("{said}{}", if cell.agrees { "" } else { "!" })
            })
            .collect::<Vec<_>>()
            .join("/");
        let style = match outcomes {
            all if all.iter().any(|cell| !cell.agrees) => Style::Red,
            all if all.iter().all(|cell| cell.expected) => Style::Green,
            _ => Style::Dim,
        };
        // Padded first: colours have no width.
        let padding = " ".repeat(13usize.saturating_sub(text.len()));
        format!("{padding}{}", self.paint(style, &text))
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", style as u8)
        } else {
            text.to_owned()
        }
    }

    fn line(&self, text: &str) {
        if self.on {
            println!("{text}");
        }
    }
}
