//! The page of `colrow estimate`: every estimator's error on given matrices.

use std::fmt::Write;

use super::axis::Axis;
use super::figure;
use super::svg::{Frame, HEIGHT, colour_class, escape, open};
use crate::estimates::{COLUMNS, Report, Row};
use crate::units;

/// What follows the page's title.
pub(super) fn body(report: &Report) -> String {
    let mut html = String::from("<dl class=\"about\">");
    for (term, file, columns) in [("X", &report.x, report.columns[0]), ("dZ", &report.dz, report.columns[1])] {
        let of = format!("{file}, {} rows of {}", units::count(report.rows as u64), units::count(columns as u64));
        let _ = write!(html, "<dt>{term}</dt><dd>{}</dd>", escape(&of));
    }
    let _ = write!(
        html,
        "<dt>Drawn</dt><dd>{} of {} rows with true norms, {} draws</dd></dl><div class=\"charts\">",
        units::count(report.drawn as u64),
        units::count(report.rows as u64),
        units::count(report.trials)
    );
    html += &figure("Error of one draw", "(rmse)", &bars(report, "rmse", |row| row.rmse));
    html += &figure("Distance of the mean of all draws", "(bias)", &bars(report, "bias", |row| row.bias));
    html += "</div><div class=\"scroll\"><table><thead><tr><th>Estimator</th><th>slope</th><th>± s.e.</th><th>bias</th><th>rmse</th></tr></thead><tbody>";
    for r in &report.estimators {
        let _ = write!(
            html,
            "<tr><th>{}</th><td>{:.5}</td><td>{:.5}</td><td>{:.5}</td><td>{:.5}</td></tr>",
            r.estimator, r.slope, r.slope_se, r.bias, r.rmse
        );
    }
    html += "</tbody></table></div><dl class=\"about\">";
    for (name, words) in COLUMNS {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", escape(words));
    }
    html + "</dl>"
}

/// A bar for each estimator, the same colours as on the page of `colrow inspect`.
fn bars(report: &Report, what: &str, value: impl Fn(&Row) -> f64) -> String {
    const COLOURS: [(&str, usize); 4] = [("crs", 0), ("wta", 1), ("pps", 2), ("topk", 3)];
    let drawn: Vec<_> = report.estimators.iter().filter(|r| r.estimator != "exact").collect();
    let largest = drawn.iter().map(|r| value(r)).fold(0.0, f64::max);
    let frame = Frame::new(Axis::named(drawn.len()), Axis::values(0.0, largest));
    let mut svg = open(HEIGHT, &format!("{what} by estimator"));
    frame.draw(&mut svg, what, "");
    for (i, row) in drawn.iter().enumerate() {
        let colour = COLOURS.iter().find(|c| c.0 == row.estimator).map_or(7, |c| c.1);
        let (left, right) = (frame.x(i as f64 + 0.2), frame.x(i as f64 + 0.8));
        let (top, bottom, middle) = (frame.y(value(row)), frame.y(0.0), (left + right) / 2.0);
        let _ = write!(
            svg,
            "<rect class=\"fill {}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
             <text class=\"value mid\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text><text class=\"label mid\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
            colour_class(colour),
            right - left,
            bottom - top,
            top - 5.0,
            units::number(value(row)),
            bottom + 20.0,
            escape(row.estimator)
        );
    }
    svg + "</svg>"
}
