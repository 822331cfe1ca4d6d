//! The page of `colrow inspect`: where the probability mass is, and every estimator's error by ratio.

use std::fmt::Write;

use colrow_train::inspect::{Evidence, SiteEvidence};

use super::svg::{Axis, Frame, HEIGHT, Series, colour_class, escape, marker, open, swatch};
use super::{figure, legend};
use crate::units;

const ESTIMATORS: [(&str, &str); 4] =
    [("crs", "crs: draws with replacement"), ("wta", "wta: the paper's"), ("pps", "pps"), ("topk", "top-k (biased)")];
const SOURCES: [(&str, &str); 4] = [
    ("current", "true norms, drawn in the backward pass"),
    ("cached", "norms of this example's last time"),
    ("running", "moving averages"),
    ("uniform", "no norms of dZ"),
];

/// What follows the page's title.
pub(super) fn body(evidence: &Evidence) -> String {
    let mut html = format!(
        "<p class=\"lead\">{} batches of {} tokens on average, {} linears. Mass: a row's share of Σ ‖H‖·‖dZ‖. Error: √E‖Ĝ − G‖² / ‖G‖ \
         of the estimated weight gradient.</p>",
        evidence.steps,
        units::count(evidence.rows_per_step.round() as u64),
        evidence.sites.len()
    );
    html += "<h2>Where the mass is</h2><div class=\"charts\">";
    html +=
        &figure("Mass of the rows with the largest probabilities", "(faint: each site; line: mean)", &mass(evidence));
    html += "</div><h2>Errors</h2>";
    html += &legend(ESTIMATORS.iter().enumerate().map(|(i, (_, words))| (swatch(i), (*words).to_owned())));
    html += "<div class=\"charts\">";
    for (source, words) in SOURCES {
        html += &figure(words, "(mean over sites)", &errors(evidence, source));
    }
    html += "</div><h2>By site</h2>";
    html + &table(evidence)
}

fn mass(evidence: &Evidence) -> String {
    let frame = Frame::new(Axis::values(0.0, 50.0), Axis::values(0.0, 1.0));
    let mut svg = open(HEIGHT, "mass by share of rows");
    frame.draw(&mut svg, "share of the mass", "top rows in %");
    let points = |site: &SiteEvidence| -> Vec<(f64, Option<f64>)> {
        site.mass.iter().map(|m| (100.0 * m.top, Some(m.share))).collect()
    };
    for site in &evidence.sites {
        let _ = write!(
            svg,
            "<path class=\"raw s0\" d=\"{}\"><title>{}</title></path>",
            frame.path(&points(site)),
            escape(&site.name)
        );
    }
    let _ = write!(svg, "<path class=\"line s0\" d=\"{}\"/></svg>", frame.path(&points(&evidence.mean)));
    svg
}

fn errors(evidence: &Evidence, source: &str) -> String {
    let series = |(colour, (estimator, _)): (usize, &(&str, &str))| {
        let points = evidence.mean.ratios.iter().map(|at| {
            let found = at.estimators.iter().find(|e| e.estimator == *estimator && e.norms == source);
            (at.ratio, found.map(|e| e.rmse))
        });
        Series { name: (*estimator).into(), colour, points: points.collect(), raw: Vec::new(), marked: true }
    };
    let all: Vec<Series> = ESTIMATORS.iter().enumerate().map(series).collect();
    // one scale for all sources, so that they can be compared
    let largest = evidence.mean.ratios.iter().flat_map(|at| &at.estimators).map(|e| e.rmse).fold(0.0, f64::max);
    let frame = Frame::new(Axis::values(0.0, 0.5), Axis::values(0.0, largest));
    let mut svg = open(HEIGHT, &format!("error by ratio, {source} norms"));
    frame.draw(&mut svg, "error", "ratio");
    for s in &all {
        let class = colour_class(s.colour);
        let _ = write!(svg, "<path class=\"line {class}\" d=\"{}\"/>", frame.path(&s.points));
        for (x, y) in s.points.iter().filter_map(|p| Some((p.0, p.1?))) {
            let (px, py) = (frame.x(x), frame.y(y));
            let _ = write!(
                svg,
                "<g class=\"point {class}\">{}<circle class=\"hit\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7\"><title>{} at {x}: {}</title></circle></g>",
                marker(s.colour, px, py),
                escape(&s.name),
                units::number(y)
            );
        }
    }
    svg + "</svg>"
}

fn table(evidence: &Evidence) -> String {
    let mut html =
        String::from("<div class=\"scroll\"><table><thead><tr><th>Site</th><th>Top 10 %</th><th>recipe</th>");
    let ratios: Vec<f64> = evidence.mean.ratios.iter().map(|at| at.ratio).collect();
    for ratio in &ratios {
        let _ = write!(html, "<th>|C|/k at {ratio}</th><th>wta, cached</th><th>pps, cached</th><th>pps, current</th>");
    }
    html += "</tr></thead><tbody>";
    for site in evidence.sites.iter().chain([&evidence.mean]) {
        let _ = write!(html, "<tr><th>{}</th><td>{:.1} %</td>", escape(&site.name), 100.0 * site.mass[2].share);
        let small = |v: Option<f64>| v.map_or(String::new(), |v| format!("<small>{v:.2}</small>"));
        let _ = write!(html, "<td>{:.4}{}</td>", site.recipe.rmse, small(site.recipe.variance_to_minibatch));
        for at in &site.ratios {
            let _ = write!(html, "<td>{:.2}</td>", at.certain_share);
            for (estimator, norms) in [("wta", "cached"), ("pps", "cached"), ("pps", "current")] {
                let found = at.estimators.iter().find(|e| e.estimator == estimator && e.norms == norms);
                let small = small(found.and_then(|e| e.variance_to_minibatch));
                let rmse = found.map_or(units::ABSENT.into(), |e| format!("{:.3}", e.rmse));
                let _ = write!(html, "<td>{rmse}{small}</td>");
            }
        }
        html += "</tr>";
    }
    html + "</tbody></table></div><p class=\"small soft\">Recipe: the error of what the recipe itself keeps. Small: squared \
            errors as a multiple of the minibatch gradient's variance.</p>"
}
