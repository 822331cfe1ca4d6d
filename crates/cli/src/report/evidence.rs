//! The page of `colrow inspect`: where the probability mass is, and every estimator's error by ratio.

use std::fmt::Write;

use colrow_train::inspect::{AtRatio, Evidence, SiteEvidence};

use super::axis::Axis;
use super::svg::{Frame, HEIGHT, Points, Series, colour_class, escape, marker, open, swatch};
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
    let about = &evidence.about;
    let named = [
        ("Model", about.model.clone()),
        ("Data", format!("{} ({})", about.data, about.task)),
        ("Recipe keeps", format!("{}, {}@{}, {} norms", about.policy, about.estimator, about.ratio, about.norms)),
        (
            "Looked at",
            format!(
                "{} batches of {} tokens on average, {} linears; passes of training before: {}",
                evidence.steps,
                units::count(evidence.rows_per_step.round() as u64),
                evidence.sites.len(),
                about.passes
            ),
        ),
    ];
    let mut html = String::from("<dl class=\"about\">");
    for (term, words) in named {
        let _ = write!(html, "<dt>{term}</dt><dd>{}</dd>", escape(&words));
    }
    html += "</dl><p>Mass: a row's share p of Σ ‖H‖·‖dZ‖. Error: √E‖Ĝ − G‖² / ‖G‖ of the estimated weight gradient.</p>\
             <h2>Where the mass is</h2><div class=\"charts\">";
    html +=
        &figure("Mass of the rows with the largest probabilities", "(faint: each site; line: mean)", &mass(evidence));
    for (r, at) in evidence.mean.ratios.iter().enumerate() {
        let title = format!("Mass of the certain rows at ratio {}", at.ratio);
        html += &figure(&title, "(faint: each site; line: mean; dashes: Σp = |C|/k)", &certain(evidence, r));
    }
    html += "</div><p class=\"small soft\">Above the dashes the paper's condition holds: with these rows kept for certain, wta has less variance \
             than crs. Triangle: the |C| that wta takes, on average.</p><h2>Errors</h2>";
    html += &legend(ESTIMATORS.iter().enumerate().map(|(i, (_, words))| (swatch(i), (*words).to_owned())));
    html += "<div class=\"charts\">";
    for (source, words) in SOURCES {
        html += &figure(words, "(mean over sites)", &errors(evidence, source));
    }
    html += "</div><h2>By site</h2>";
    html + &tables(evidence)
}

/// A faint curve for each site and a line for their mean.
fn each_and_mean(svg: &mut String, frame: &Frame, evidence: &Evidence, points: impl Fn(&SiteEvidence) -> Points) {
    for site in &evidence.sites {
        let path = frame.path(&points(site));
        let _ = write!(svg, "<path class=\"raw s0\" d=\"{path}\"><title>{}</title></path>", escape(&site.name));
    }
    let _ = write!(svg, "<path class=\"line s0\" d=\"{}\"/>", frame.path(&points(&evidence.mean)));
}

fn mass(evidence: &Evidence) -> String {
    let frame = Frame::new(Axis::values(0.0, 100.0), Axis::values(0.0, 100.0));
    let mut svg = open(HEIGHT, "mass by share of rows");
    frame.draw(&mut svg, "mass in %", "top rows in %");
    each_and_mean(&mut svg, &frame, evidence, |site| {
        let points = site.mass.iter().map(|m| (100.0 * m.top, Some(100.0 * m.share)));
        std::iter::once((0.0, Some(0.0))).chain(points).collect()
    });
    svg + "</svg>"
}

/// Σ_C p against |C|/k.
fn certain(evidence: &Evidence, r: usize) -> String {
    let frame = Frame::new(Axis::values(0.0, 1.0), Axis::values(0.0, 1.0));
    let mut svg = open(HEIGHT, "probability mass of the certain rows by their share of k");
    frame.draw(&mut svg, "Σp over C", "|C|/k");
    let equal = frame.path(&[(0.0, Some(0.0)), (1.0, Some(1.0))]);
    let _ = write!(svg, "<path class=\"peak\" d=\"{equal}\"/>");
    each_and_mean(&mut svg, &frame, evidence, |site| {
        site.ratios[r].certain.iter().map(|c| (c.share, Some(c.mass))).collect()
    });
    let at = &evidence.mean.ratios[r];
    let (x, y) = (frame.x(at.certain_share), frame.y(mass_at(at)));
    let _ = write!(
        svg,
        "<g class=\"point s1\">{}<circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\"><title>wta takes |C|/k = {:.2}</title></circle></g></svg>",
        marker(2, x, y),
        at.certain_share
    );
    svg
}

/// The mass at the mean |C|/k, between the points that were measured.
fn mass_at(at: &AtRatio) -> f64 {
    let pair = at.certain.windows(2).find(|pair| pair[1].share >= at.certain_share);
    pair.map_or(0.0, |pair| {
        let part = (at.certain_share - pair[0].share) / (pair[1].share - pair[0].share);
        pair[0].mass + part * (pair[1].mass - pair[0].mass)
    })
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

/// A table for each ratio, the one nearest to 0.3 open.
fn tables(evidence: &Evidence) -> String {
    let all = evidence.mean.ratios.iter().enumerate().map(|(r, at)| {
        let open = if (at.ratio - 0.3).abs() < 1e-9 { " open" } else { "" };
        format!("<details{open}><summary>At ratio {}</summary>{}</details>", at.ratio, table(evidence, r))
    });
    let recipe = match keeps_all(evidence) {
        true => "The recipe itself keeps everything exactly.",
        false => "Recipe: the error of what the recipe itself keeps, whatever the ratio of the table.",
    };
    all.collect::<String>()
        + &format!(
            "<p class=\"small soft\">Top 10 %: their mass. |C|/k: of wta. {recipe} Small: squared errors as a multiple of the minibatch \
             gradient's variance.</p>"
        )
}

/// Whether the recipe's own error is 0 everywhere.
fn keeps_all(evidence: &Evidence) -> bool {
    evidence.sites.iter().all(|site| site.recipe.rmse == 0.0)
}

fn table(evidence: &Evidence, r: usize) -> String {
    const COLUMNS: [(&str, &str); 5] =
        [("crs", "current"), ("wta", "cached"), ("pps", "cached"), ("wta", "current"), ("pps", "current")];
    let mut heads = vec!["Top 10 %".to_owned(), "|C|/k".to_owned()];
    heads.extend(COLUMNS.map(|(estimator, norms)| format!("{estimator}, {norms}")));
    if !keeps_all(evidence) {
        heads.push("Recipe".to_owned());
    }
    let mut html = String::from("<table class=\"stack\"><thead><tr><th>Site</th>");
    for head in &heads {
        let _ = write!(html, "<th>{head}</th>");
    }
    html += "</tr></thead><tbody>";
    let error = |rmse: f64, variance: Option<f64>| {
        let small = variance.map_or(String::new(), |v| format!("<small>{v:.2}</small>"));
        // codes of eight bits are off by a few thousandths
        if rmse < 0.1 { format!("{rmse:.4}{small}") } else { format!("{rmse:.3}{small}") }
    };
    for site in evidence.sites.iter().chain([&evidence.mean]) {
        let at = &site.ratios[r];
        let mut cells = vec![format!("{:.1} %", 100.0 * site.mass[2].share), format!("{:.2}", at.certain_share)];
        cells.extend(COLUMNS.map(|(estimator, norms)| {
            let found = at.estimators.iter().find(|e| e.estimator == estimator && e.norms == norms);
            found.map_or(units::ABSENT.into(), |e| error(e.rmse, e.variance_to_minibatch))
        }));
        cells.push(error(site.recipe.rmse, site.recipe.variance_to_minibatch));
        let _ = write!(html, "<tr><th>{}</th>", escape(&site.name));
        for (head, cell) in heads.iter().zip(cells) {
            let _ = write!(html, "<td data-head=\"{head}\"><span>{cell}</span></td>");
        }
        html += "</tr>";
    }
    html + "</tbody></table>"
}
