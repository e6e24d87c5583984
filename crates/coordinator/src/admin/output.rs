//! What commands print: a table for people, or JSON.

use std::io::{self, Write};

use serde::Serialize;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Where results go, and in which form.
pub(super) struct Printer<W> {
    pub(super) format: Format,
    pub(super) to: W,
}

impl<W: Write> Printer<W> {
    /// Prints a list: as JSON an array of the items, as a table a row for each.
    pub(super) fn list<T: Serialize, const N: usize>(
        &mut self,
        items: &[T],
        head: [&str; N],
        row: impl Fn(&T) -> [String; N],
    ) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(items),
            Format::Table => {
                let mut rows = vec![head.map(str::to_owned)];
                rows.extend(items.iter().map(row));
                self.rows(&rows)
            }
        }
    }

    /// Prints one thing: as JSON the item, as a table a line for each field that has a value.
    pub(super) fn item<T: Serialize, const N: usize>(
        &mut self,
        item: &T,
        fields: [(&str, String); N],
    ) -> io::Result<()> {
        match self.format {
            Format::Json => self.json(item),
            Format::Table => {
                let present = fields.into_iter().filter(|(_, value)| !value.is_empty());
                let rows: Vec<[String; 2]> = present.map(|(name, value)| [name.to_owned(), value]).collect();
                self.rows(&rows)
            }
        }
    }

    /// Prints what was done, for people. Programs have the exit code.
    pub(super) fn done(&mut self, text: &str) -> io::Result<()> {
        match self.format {
            Format::Json => Ok(()),
            Format::Table => writeln!(self.to, "{text}"),
        }
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.to, value)?;
        writeln!(self.to)
    }

    /// Columns are as wide as their widest cell, two spaces apart.
    fn rows<const N: usize>(&mut self, rows: &[[String; N]]) -> io::Result<()> {
        let mut widths = [0; N];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in rows {
            let cells = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(self.to, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
