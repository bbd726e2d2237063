//! Aligned columns for people (the first to the left, numbers to the right), and what stands in them.

use std::fmt;

/// A table under construction.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row. One with fewer cells than there are columns is fine; its last cell may be a text of any length.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The width of a column: that of its widest cell, but for the last of a short row.
    fn width(&self, column: usize) -> usize {
        let columns = self.rows.first().map_or(0, Vec::len);
        let is_cell = |row: &&Vec<String>| row.len() == columns || column + 1 < row.len();
        self.rows
            .iter()
            .filter(is_cell)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = self.width(column);
                let last_of_short_row = row.len() < columns && column + 1 == row.len();
                match column {
                    0 => line += &format!("{cell:<width$}"),
                    _ if last_of_short_row => line += &format!("  {cell}"),
                    _ => line += &format!("  {cell:>width$}"),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with as many digits as are worth reading: `2.35`, `23.4`, `234`.
pub fn digits(number: f64) -> String {
    match number.abs() {
        n if n >= 99.95 => format!("{number:.0}"),
        n if n >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// The middle of sorted numbers.
pub fn median(sorted: &[f64]) -> f64 {
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (sorted[sorted.len() / 2 - 1] + upper) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_a_short_row_may_run_on() {
        let mut table = Table::new(&["name", "ns", "ratio"]);
        table.row(vec!["one".into(), "12.5".into(), "1".into()]);
        table.row(vec!["three".into(), "failed for a long reason".into()]);
        assert_eq!(table.to_string(), "name     ns  ratio\none    12.5      1\nthree  failed for a long reason\n");
    }

    #[test]
    fn the_middle() {
        assert_eq!([median(&[]), median(&[1.0]), median(&[1.0, 2.0]), median(&[1.0, 2.0, 9.0])], [0.0, 1.0, 1.5, 2.0]);
    }

    #[test]
    fn three_digits() {
        assert_eq!([2.345, 23.45, 234.5, 0.0].map(digits), ["2.35", "23.4", "234", "0.00"]);
    }
}
