//! How each class fared in the last evaluation, and what it was taken for.

use std::fmt::Write;

use super::Named;
use super::load::{ByClass, ClassScore};
use super::svg::escape;
use crate::units;

/// Most classes whose confusion is drawn.
const MOST: usize = 20;

/// The section of the page; empty if no run tells of classes.
pub(super) fn section(runs: &[Named]) -> String {
    let told: Vec<(&Named, &ByClass)> = runs.iter().filter_map(|n| Some((n, n.run.by_class()?))).collect();
    if told.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>By class</h2>\n<p>The last evaluation of the run, class by class. The model that is saved is that of the best evaluation.</p>",
    );
    for (named, by_class) in told {
        if runs.len() > 1 {
            let which = if named.runs.len() > 1 { ", its first seed" } else { "" };
            let _ = write!(html, "<h3>{}{which}</h3>", escape(&named.name));
        }
        html += "<div class=\"charts\">";
        html += &table(by_class);
        html += &confusion(by_class);
        html += "</div>";
    }
    html
}

fn table(by_class: &ByClass) -> String {
    let mut html = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>Class</th><th>Precision</th><th>Recall</th><th>F1</th><th>Examples</th></tr></thead><tbody>",
    );
    let number = |value: Option<f64>| value.map_or(units::ABSENT.into(), |v| format!("{v:.3}"));
    for ClassScore { name, precision, recall, f1, support } in &by_class.classes {
        let note =
            if by_class.positive.as_ref() == Some(name) { "<small>the run's F1 is of this class</small>" } else { "" };
        let _ = write!(
            html,
            "<tr><th class=\"fold\">{}{note}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            number(*precision),
            number(*recall),
            number(*f1),
            support.map_or(units::ABSENT.into(), units::count)
        );
    }
    html += "</tbody>";
    if let Some(mean) = by_class.macro_f1 {
        let _ =
            write!(html, "<tfoot><tr><th>Mean (macro)</th><td></td><td></td><td>{mean:.3}</td><td></td></tr></tfoot>");
    }
    html + "</table></div>"
}

/// The confusion matrix, each cell as dark as its share of the row.
fn confusion(by_class: &ByClass) -> String {
    let (rows, classes) = (&by_class.confusion, &by_class.classes);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    if rows.is_empty() || rows.len() > MOST {
        return String::new();
    }
    let name = |i: usize| classes.get(i).map_or("no label", |class| &class.name);
    let mut html = String::from(
        "<div class=\"scroll\"><table class=\"confusion\"><caption>Rows: what an example is. Columns: what it was taken for.</caption>\
         <thead><tr><td></td>",
    );
    for i in 0..columns {
        let _ = write!(html, "<th class=\"fold\">{}</th>", escape(name(i)));
    }
    html += "</tr></thead><tbody>";
    for (i, row) in rows.iter().enumerate() {
        let all: u64 = row.iter().fold(0, |sum, n| sum.saturating_add(*n));
        let _ = write!(html, "<tr><th class=\"fold\">{}</th>", escape(name(i)));
        for (j, n) in row.iter().enumerate() {
            let share = 100.0 * *n as f64 / all.max(1) as f64;
            let class = if i == j { "right" } else { "wrong" };
            let _ = write!(
                html,
                "<td class=\"{class}\" style=\"--share:{share:.0}%\" title=\"{share:.1} % of {}\">{}</td>",
                escape(name(i)),
                units::count(*n)
            );
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}
