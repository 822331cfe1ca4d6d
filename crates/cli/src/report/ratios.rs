//! Ratios that a run chose, over its steps: a line for each kind of site, the mean of its layers, and faintly each of them.

use std::collections::HashMap;

use super::load::{RatioPoint, Run};
use super::sites::kind;
use super::svg::{Points, Series, line_chart, swatch};
use super::{Named, figure, legend};

/// The chart of every run that chose ratios; empty if none did.
pub(super) fn section(runs: &[Named]) -> String {
    let some: Vec<_> = runs.iter().filter(|n| n.run.ratios.iter().any(|p| !p.ratios.is_empty())).collect();
    if some.is_empty() {
        return String::new();
    }
    let title = |n: &Named| if runs.len() > 1 { n.name.clone() } else { "Share of the rows that is kept".into() };
    let charts: String = some.iter().map(|n| chart(n.run, &title(n))).collect();
    format!(
        "<h2>Ratios</h2>\n<p>What <code>keep.ratio = \"auto\"</code> chose: each site keeps as many rows as it takes for sampling to add no more \
         than a small share of the minibatch's own variance.</p><div class=\"charts\">{charts}</div>"
    )
}

fn chart(run: &Run, title: &str) -> String {
    let kinds = series(&run.ratios);
    let names = kinds.iter().enumerate().map(|(i, k)| (swatch(i), k.name.clone()));
    let how = if kinds.iter().any(|k| k.sites.len() > 1) { "(faint: each site; line: their mean)" } else { "" };
    let html = legend(names);
    let all: Vec<Series> = kinds.into_iter().enumerate().map(|(colour, kind)| kind.series(colour)).collect();
    figure(title, how, &(html + &line_chart("ratio", &all)))
}

/// Sites that differ in their layer alone.
struct Kind {
    name: String,
    /// Each site's curve.
    sites: Vec<Points>,
}

impl Kind {
    fn series(self, colour: usize) -> Series {
        let mean = |i: usize| {
            let known: Vec<f64> = self.sites.iter().filter_map(|site| site[i].1).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let points = (0..self.sites[0].len()).map(|i| (self.sites[0][i].0, mean(i))).collect();
        let raw = if self.sites.len() > 1 { self.sites } else { Vec::new() };
        Series { name: self.name, colour, points, raw, marked: false }
    }
}

/// Curves by kind, in order of appearance. A point tells of the sites that changed; the others are as they were.
fn series(points: &[RatioPoint]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut place: HashMap<&str, (usize, usize)> = HashMap::new();
    for site in points.iter().flat_map(|p| p.ratios.keys()) {
        if place.contains_key(site.as_str()) {
            continue;
        }
        let name = kind(site);
        let k = kinds.iter().position(|k| k.name == name).unwrap_or_else(|| {
            kinds.push(Kind { name, sites: Vec::new() });
            kinds.len() - 1
        });
        place.insert(site, (k, kinds[k].sites.len()));
        kinds[k].sites.push(Vec::new());
    }
    for point in points {
        for (site, &(k, s)) in &place {
            let curve = &mut kinds[k].sites[s];
            let before = curve.last().and_then(|p| p.1);
            let now = point.ratios.get(*site).and_then(serde_json::Value::as_f64);
            curve.push((point.step as f64, now.or(before)));
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, ratios: serde_json::Value) -> RatioPoint {
        RatioPoint { step, ratios: ratios.as_object().unwrap().clone() }
    }

    #[test]
    fn sites_keep_their_last_ratio_and_layers_are_averaged() {
        let points = [
            point(0, serde_json::json!({"a.layer.0.up": 0.3, "a.layer.1.up": 0.3, "pooler": 0.3})),
            point(10, serde_json::json!({"a.layer.1.up": 0.2})),
            point(20, serde_json::json!({"pooler": 0.45, "late": 0.5, "a.layer.0.up": null})),
        ];
        let kinds = series(&points);
        let names: Vec<_> = kinds.iter().map(|k| (k.name.as_str(), k.sites.len())).collect();
        assert_eq!(names, [("a.layer.*.up", 2), ("pooler", 1), ("late", 1)]);
        let lines: Vec<Vec<_>> = kinds.into_iter().map(|k| k.series(0).points).collect();
        assert_eq!(lines[0], [(0.0, Some(0.3)), (10.0, Some(0.25)), (20.0, Some(0.25))]);
        assert_eq!(lines[1], [(0.0, Some(0.3)), (10.0, Some(0.3)), (20.0, Some(0.45))]);
        assert_eq!(lines[2], [(0.0, None), (10.0, None), (20.0, Some(0.5))]);
    }
}
