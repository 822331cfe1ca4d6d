//! A metric against what it costs, a point for each recipe.

use std::fmt::Write;

use super::axis::Axis;
use super::groups::Spread;
use super::load::Run;
use super::svg::{ASIDE, Frame, HEIGHT, colour_class, escape, marker, open, swatch};
use super::{Named, figure, legend};
use crate::units;

/// The least width of an axis as a share of its values: less than that is no difference to look at.
const NARROWEST: f64 = 0.05;

/// A point with its cost and its metric.
struct Point {
    name: String,
    colour: usize,
    x: f64,
    y: Spread,
}

/// Metric against peak memory and against time, for several runs that have the same metric.
pub(super) fn section(runs: &[Named]) -> String {
    let first = runs.first().and_then(|n| n.run.metric());
    let Some(metric) = first.filter(|_| runs.len() > 1) else { return String::new() };
    let points = |cost: fn(&Run) -> Option<f64>| -> Vec<Point> {
        let point = |n: &Named| {
            let y = n.spread(|run| run.last(&metric))?;
            Some(Point { name: n.name.clone(), colour: n.colour, x: n.mean(cost)?, y })
        };
        runs.iter().filter_map(point).collect()
    };
    let memory = points(|run| run.peak_bytes().map(|b| b as f64 / (1 << 20) as f64));
    let time = points(|run| run.of(|s| s.seconds));
    if memory.len() < 2 && time.len() < 2 {
        return String::new();
    }
    let drawn = |n: &&Named| [&memory, &time].into_iter().flatten().any(|p| p.colour == n.colour);
    let entries = runs.iter().filter(drawn).map(|n| (swatch(n.colour), n.name.clone()));
    let mut html = format!("<h2>What it costs</h2>\n{}<div class=\"charts\">", legend(entries));
    for (title, x_name, points) in
        [("against peak memory", "peak memory in MiB", memory), ("against time", "seconds of training", time)]
    {
        if points.len() > 1 {
            html += &figure(
                &format!("Last {metric} {title}"),
                if points.iter().any(|p| p.y.deviation.is_some()) {
                    "(bars: standard deviation over seeds)"
                } else {
                    ""
                },
                &chart(&metric, x_name, &points),
            );
        }
    }
    html + "</div>"
}

fn chart(metric: &str, x_name: &str, points: &[Point]) -> String {
    let ends = |p: &Point| [p.y.mean - p.y.deviation.unwrap_or(0.0), p.y.mean + p.y.deviation.unwrap_or(0.0)];
    let range = |values: Vec<f64>| {
        let fold = |f: fn(f64, f64) -> f64, start| values.iter().copied().fold(start, f);
        let (low, high) = (fold(f64::min, f64::INFINITY), fold(f64::max, f64::NEG_INFINITY));
        let more = (NARROWEST * high.abs().max(low.abs()) - (high - low)).max(0.0) / 2.0;
        Axis::values(low - more, high + more)
    };
    let frame = Frame::new(range(points.iter().map(|p| p.x).collect()), range(points.iter().flat_map(ends).collect()));
    let mut svg = open(HEIGHT, &format!("{metric} by {x_name}"));
    frame.draw(&mut svg, metric, x_name);
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for p in points {
        let (mut x, y, [low, high]) = (frame.x(p.x), frame.y(p.y.mean), ends(p).map(|y| frame.y(y)));
        // points in one place stand side by side
        while taken.iter().any(|t| (t.0 - x).abs() < ASIDE && (t.1 - y).abs() < ASIDE) {
            x += ASIDE;
        }
        taken.push((x, y));
        let deviation = p.y.deviation.map_or(String::new(), |d| format!(" ± {}", units::number(d)));
        let _ = write!(
            svg,
            "<g class=\"point {}\"><path class=\"line\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>{}<circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\">\
             <title>{}: {} {}{deviation}, {x_name} {}</title></circle></g>",
            colour_class(p.colour),
            marker(p.colour, x, y),
            escape(&p.name),
            escape(metric),
            units::number(p.y.mean),
            units::number(p.x),
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::super::{named, sample};
    use super::*;

    #[test]
    fn points_in_one_place_are_all_seen() {
        let point = |colour| Point { name: "a".into(), colour, x: 1.0, y: Spread { mean: 0.5, deviation: None } };
        let svg = chart("accuracy", "seconds", &[point(0), point(1), point(2)]);
        let hits: Vec<f64> =
            svg.split("class=\"hit\" cx=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect();
        assert_eq!(hits.len(), 3);
        assert_eq!((hits[1] - hits[0], hits[2] - hits[1]), (ASIDE, ASIDE));
    }

    #[test]
    fn every_recipe_is_a_point_in_both_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let run = |(i, rows): (usize, f64)| {
            let dir = folder.path().join(i.to_string());
            sample::write_run(&dir, &format!("run {i}"), i as u64, rows);
            Run { recipe: Some(format!("ratio = {rows}")), ..Run::load(&dir).unwrap() }
        };
        let runs: Vec<Run> = [1.0, 0.3, 0.1].into_iter().enumerate().map(run).collect();
        let html = section(&named(&runs));
        assert_eq!(html.matches("class=\"point").count(), 2 * runs.len(), "{html}");
        assert!(html.contains("peak memory in MiB") && html.contains("seconds of training"));
        assert_eq!(section(&named(&runs[..1])), "");
    }
}
