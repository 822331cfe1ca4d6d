//! Charts as inline SVG. Colours, fonts and the dark scheme come from the page's style sheet.

use super::axis::Axis;
use crate::units;
use colrow_tensor::printable::steers;
use std::fmt::Write;

/// Distinct colours in the style sheet (`.s0` to `.s7`); further series repeat them with dashes.
pub(super) const COLOURS: usize = 8;

/// Width of every chart in its own units; the page scales it.
const WIDTH: f64 = 560.0;
/// Height of the charts with a value axis.
pub(super) const HEIGHT: f64 = 300.0;
/// How far apart the marks of points in one place are drawn.
pub(super) const ASIDE: f64 = 9.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 46.0;
/// Values beyond this are drawn as missing: sums and differences of what is left stay finite.
const LARGEST: f64 = 1e30;

/// Text as HTML: markup escaped, and shown as escapes what HTML does not allow or what turns the reading order.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if steers(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// `(x, y)` of a curve.
pub(super) type Points = Vec<(f64, Option<f64>)>;

/// One run's curve in a [`line_chart`].
pub(super) struct Series {
    /// Name in tooltips.
    pub(super) name: String,
    /// Index of the colour.
    pub(super) colour: usize,
    /// `(x, y)` by increasing x; a missing y is a gap.
    pub(super) points: Points,
    /// What the curve is made of, drawn faintly: itself before smoothing, or each of the runs that it is the mean of.
    pub(super) raw: Vec<Points>,
    /// Whether each point is a measurement to be marked, and not one of a dense curve.
    pub(super) marked: bool,
}

/// Curves over steps; `what` names the value on the vertical axis. Curves that lie on one another are drawn with dashes in turn, and named
/// below.
pub(super) fn line_chart(what: &str, series: &[Series]) -> String {
    let all = || {
        series
            .iter()
            .flat_map(|s| s.points.iter().chain(s.raw.iter().flatten()))
            .filter_map(|p| Some((p.0, drawable(p.1)?)))
    };
    let Some(first) = all().next() else {
        return "<p class=\"none\">No finite value was logged.</p>".into();
    };
    let [mut x_range, mut y_range] = [(first.0, first.0), (first.1, first.1)];
    for (x, y) in all() {
        x_range = (x_range.0.min(x), x_range.1.max(x));
        y_range = (y_range.0.min(y), y_range.1.max(y));
    }
    let (x_axis, y_axis) = (Axis::steps(x_range.0.min(0.0), x_range.1), Axis::values(y_range.0, y_range.1));
    let frame = Frame::new(x_axis, y_axis);
    let mut svg = open(HEIGHT, &format!("{what} by step"));
    frame.draw(&mut svg, what, "step");
    for s in series {
        let class = colour_class(s.colour);
        for raw in &s.raw {
            let _ = write!(svg, "<path class=\"raw {class}\" d=\"{}\"/>", frame.path(&thin(raw, 400)));
        }
    }
    let path = |s: &Series| frame.path(&if s.marked { s.points.clone() } else { thin(&s.points, 400) });
    let paths: Vec<String> = series.iter().map(path).collect();
    let same: Vec<Vec<usize>> = (0..series.len()).map(|i| same_as(&paths, i)).collect();
    for ((i, s), path) in series.iter().enumerate().zip(&paths) {
        let class = colour_class(s.colour);
        let _ = write!(svg, "<path class=\"line {class}\"{} d=\"{path}\"/>", in_turn(&same[i], i));
    }
    for (i, s) in series.iter().enumerate() {
        let class = colour_class(s.colour);
        let (turns, turn) = (same[i].len().max(1), same[i].iter().position(|&j| j == i).unwrap_or(0));
        // As many tooltips as a pointer can tell apart.
        let stride = s.points.len().div_ceil(if s.marked { 400 } else { 80 }).max(1);
        let drawn = s.points.iter().step_by(stride).filter_map(|p| Some((p.0, drawable(p.1)?)));
        for (nth, (x, y)) in drawn.enumerate() {
            let (mut px, py) = (frame.x(x), frame.y(y));
            // Too few points for turns stand side by side.
            let few = s.points.len() < turns;
            px -= if few { ASIDE * turn as f64 } else { 0.0 };
            let shape = if s.marked && (few || nth % turns == turn) { marker(s.colour, px, py) } else { String::new() };
            let _ = write!(
                svg,
                "<g class=\"point {class}\">{shape}<circle class=\"hit\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7\"><title>{}, step {}: {} {}</title></circle></g>",
                escape(&s.name),
                units::count(x.max(0.0) as u64),
                escape(what),
                units::number(y),
            );
        }
    }
    svg.push_str("</svg>");
    for group in same.iter().enumerate().filter(|(i, group)| group.first() == Some(i)).map(|(_, group)| group) {
        let names: Vec<String> = group.iter().map(|&i| escape(&series[i].name)).collect();
        let _ = write!(svg, "<p class=\"same\">{} are the same here: drawn in turn.</p>", names.join(", "));
    }
    svg
}

/// The curves that look the same as the one at `at`, itself among them; empty if there is no other.
fn same_as(paths: &[String], at: usize) -> Vec<usize> {
    let same: Vec<usize> = (0..paths.len()).filter(|&i| paths[i] == paths[at]).collect();
    if same.len() > 1 && !paths[at].is_empty() { same } else { Vec::new() }
}

/// Dashes that leave room for those of the other curves on the same path.
fn in_turn(same: &[usize], at: usize) -> String {
    const DASH: usize = 9;
    let Some(turn) = same.iter().position(|&i| i == at) else { return String::new() };
    let (gap, offset) = (DASH * (same.len() - 1), DASH * turn);
    format!(" style=\"stroke-dasharray:{DASH} {gap};stroke-dashoffset:-{offset};stroke-linecap:butt\"")
}

/// The sign of a series in a legend: its line with its marker.
pub(super) fn swatch(colour: usize) -> String {
    format!(
        "<svg class=\"swatch {}\" viewBox=\"0 0 26 14\" aria-hidden=\"true\"><path class=\"line\" d=\"M1 7H25\"/>{}</svg>",
        colour_class(colour),
        marker(colour, 13.0, 7.0)
    )
}

/// A horizontal bar of a [`bar_chart`].
pub(super) struct Bar {
    /// The bar's label.
    pub(super) label: String,
    /// Name, colour and bytes of its parts, from the left.
    pub(super) parts: Vec<(String, usize, u64)>,
}

/// Stacked horizontal bars of bytes on an axis that ends at `most` bytes or more.
pub(super) fn bar_chart(what: &str, bars: &[Bar], most: u64) -> String {
    const ROW: f64 = 25.0;
    const LABEL: usize = 16;
    let total = |bar: &Bar| bar.parts.iter().fold(0u64, |sum, p| sum.saturating_add(p.2));
    let most = bars.iter().map(total).max().unwrap_or(0).max(most);
    if bars.is_empty() || most == 0 {
        return "<p class=\"none\">Nothing is kept.</p>".into();
    }
    let widest = bars.iter().map(|b| b.label.chars().count().min(LABEL)).max().unwrap_or(0);
    // Room for the larger letters of a narrow screen.
    let left = 14.0 + 9.4 * widest as f64;
    let right = 84.0;
    let (axis, unit) = Axis::bytes(most, (WIDTH - left - right) / 70.0);
    let x = |bytes: f64| left + (WIDTH - left - right) * bytes / axis.high;
    let bottom = 8.0 + ROW * bars.len() as f64;
    let mut svg = open(bottom + 42.0, what);
    for (value, label) in &axis.ticks {
        let px = x(*value);
        let _ = write!(svg, "<path class=\"grid\" d=\"M{px:.1} 4V{bottom:.1}\"/>");
        let _ = write!(svg, "<text class=\"tick mid\" x=\"{px:.1}\" y=\"{:.1}\">{label}</text>", bottom + 17.0);
    }
    let _ = write!(svg, "<text class=\"axis end\" x=\"{:.1}\" y=\"{:.1}\">{unit}</text>", WIDTH - 4.0, bottom + 17.0);
    for (i, bar) in bars.iter().enumerate() {
        let y = 8.0 + ROW * i as f64;
        let middle = y + ROW / 2.0 + 3.0;
        let _ = write!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{middle:.1}\">{}<title>{}</title></text>",
            left - 7.0,
            escape(&shorten(&bar.label, LABEL)),
            escape(&bar.label)
        );
        let mut from = 0.0;
        for (name, colour, bytes) in bar.parts.iter().filter(|p| p.2 > 0) {
            let to = from + *bytes as f64;
            let (x0, x1) = (x(from), x(to));
            let _ = write!(
                svg,
                "<rect class=\"fill {}\" x=\"{x0:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}, {}: {}</title></rect>",
                colour_class(*colour),
                y + 3.0,
                // A gap between parts, where there is room for one.
                if x1 - x0 > 3.0 { x1 - x0 - 1.0 } else { (x1 - x0).max(0.4) },
                ROW - 7.0,
                escape(&bar.label),
                escape(name),
                units::bytes(*bytes)
            );
            from = to;
        }
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
            x(from) + 6.0,
            units::bytes(total(bar))
        );
    }
    let _ = write!(svg, "<path class=\"rule\" d=\"M{left:.1} 4V{bottom:.1}\"/></svg>");
    svg
}

/// One point of an [`area_chart`].
pub(super) struct Slice {
    /// The phase it belongs to; neighbours of one phase are drawn as one band.
    pub(super) phase: String,
    /// What happens there, for the tooltip.
    pub(super) at: String,
    /// Bytes of each layer, from the bottom, in the order of the layers' names.
    pub(super) bytes: Vec<u64>,
}

/// Stacked areas of bytes over the events of a step. `layers` are names and colours from the bottom, `line` a level to
/// mark with its words, `most` what the axis reaches at least.
pub(super) fn area_chart(
    what: &str,
    layers: &[(String, usize)],
    slices: &[Slice],
    line: Option<(u64, String)>,
    most: u64,
) -> String {
    let total = |s: &Slice| s.bytes.iter().fold(0u64, |sum, b| sum.saturating_add(*b));
    let highest = slices.iter().map(total).max().unwrap_or(0);
    let most = most.max(highest).max(line.as_ref().map_or(0, |l| l.0));
    if slices.is_empty() || most == 0 {
        return "<p class=\"none\">No timeline was recorded.</p>".into();
    }
    let phases: Vec<&[Slice]> = slices.chunk_by(|a, b| a.phase == b.phase).collect();
    // Room above the highest line for its words.
    let (y_axis, unit) = Axis::bytes((most as f64 * 1.08) as u64, 5.0);
    let frame = Frame::new(Axis { low: 0.0, high: 1.0, ticks: Vec::new() }, y_axis);
    let mut svg = open(HEIGHT, what);
    frame.draw(&mut svg, unit, "events of one step, in order");

    // A phase of few events (the optimizer's) still gets room for its name.
    let least = 0.22f64.min(0.8 / phases.len() as f64);
    let share: Vec<f64> = phases.iter().map(|p| (p.len() as f64 / slices.len() as f64).max(least)).collect();
    let whole: f64 = share.iter().sum();
    let mut cells: Vec<(f64, f64, &Slice)> = Vec::new();
    let mut bands = Vec::new();
    let mut start = 0.0;
    for (phase, share) in phases.iter().zip(share) {
        let width = share / whole;
        bands.push((start, start + width, phase[0].phase.as_str()));
        // Long steps are thinned to the largest event of each group, so that no peak is lost.
        let groups: Vec<&[Slice]> = phase.chunks(slices.len().div_ceil(300).max(1)).collect();
        for (i, group) in groups.iter().enumerate() {
            let at = |i: usize| frame.x(start + width * i as f64 / groups.len() as f64);
            let largest = group.iter().max_by_key(|s| total(s)).unwrap_or(&group[0]);
            cells.push((at(i), at(i + 1), largest));
        }
        start += width;
    }

    let mut below = vec![0.0; cells.len()];
    for (layer, (_, colour)) in layers.iter().enumerate() {
        let above: Vec<f64> =
            below.iter().zip(&cells).map(|(b, c)| b + c.2.bytes.get(layer).copied().unwrap_or(0) as f64).collect();
        if above.iter().zip(&below).any(|(a, b)| a > b) {
            let mut d = String::new();
            for (i, (x0, x1, _)) in cells.iter().enumerate() {
                let command = if i == 0 { 'M' } else { 'L' };
                let y = frame.y(above[i]);
                let _ = write!(d, "{command}{x0:.1} {y:.1}H{x1:.1}");
            }
            for (i, (x0, x1, _)) in cells.iter().enumerate().rev() {
                let y = frame.y(below[i]);
                let _ = write!(d, "L{x1:.1} {y:.1}H{x0:.1}");
            }
            let _ = write!(svg, "<path class=\"fill {}\" d=\"{d}Z\"/>", colour_class(*colour));
        }
        below = above;
    }
    for (i, (from, to, phase)) in bands.iter().enumerate() {
        let (x0, x1) = (frame.x(*from), frame.x(*to));
        if i > 0 {
            let _ = write!(svg, "<path class=\"phase\" d=\"M{x0:.1} {:.1}V{:.1}\"/>", TOP - 18.0, HEIGHT - BOTTOM);
        }
        let letters = ((x1 - x0) / 9.0) as usize;
        let label = shorten(phase, letters);
        let _ = write!(
            svg,
            "<text class=\"label mid\" x=\"{:.1}\" y=\"{:.1}\">{}<title>{}</title></text>",
            (x0 + x1) / 2.0,
            TOP - 10.0,
            escape(&label),
            escape(phase)
        );
    }
    let highest_cell = cells.iter().reduce(|best, cell| if total(cell.2) > total(best.2) { cell } else { best });
    if let Some((x0, x1, slice)) = highest_cell {
        let (x, y) = ((x0 + x1) / 2.0, frame.y(total(slice) as f64));
        let _ = write!(svg, "<path class=\"phase\" d=\"M{x:.1} {y:.1}V{:.1}\"/>", HEIGHT - BOTTOM);
        let _ = write!(svg, "<path class=\"at\" d=\"M{x:.1} {y:.1}l-5 -8h10z\"/>");
    }
    if let Some((bytes, words)) = line {
        let y = frame.y(bytes as f64);
        let _ = write!(svg, "<path class=\"peak\" d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT);
        let _ =
            write!(svg, "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>", LEFT + 6.0, y - 5.0, escape(&words));
    }
    for (x0, x1, slice) in &cells {
        let mut tip = format!("{} {}\ntotal {}", slice.phase, slice.at, units::bytes(total(slice)));
        for ((name, _), bytes) in layers.iter().zip(&slice.bytes).rev().filter(|l| *l.1 > 0) {
            let _ = write!(tip, "\n{name} {}", units::bytes(*bytes));
        }
        let _ = write!(
            svg,
            "<rect class=\"slot\" x=\"{x0:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            (x1 - x0).max(0.1),
            HEIGHT - TOP - BOTTOM,
            escape(&tip)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// A moving average centred on each point, with Gaussian weights that span about `window` points; gaps stay gaps.
pub(super) fn smooth(points: &[(f64, Option<f64>)], window: usize) -> Points {
    // A Gaussian of this deviation averages away as much noise as a plain mean over `window` points.
    let deviation = window.max(1) as f64 / (2.0 * std::f64::consts::PI.sqrt());
    let weights: Vec<f64> = (0..=window).map(|i| (-0.5 * (i as f64 / deviation).powi(2)).exp()).collect();
    let mean = |at: usize| {
        drawable(points[at].1)?;
        let near = at.saturating_sub(window)..points.len().min(at + window + 1);
        let terms = near.filter_map(|i| Some((weights[i.abs_diff(at)], drawable(points[i].1)?)));
        let (sum, weight) = terms.fold((0.0, 0.0), |(sum, weight), (w, y)| (sum + w * y, weight + w));
        Some(sum / weight)
    };
    points.iter().enumerate().map(|(i, p)| (p.0, mean(i))).collect()
}

/// The mean of curves at the steps that all of them have.
pub(super) fn mean(curves: &[Points]) -> Points {
    let Some((first, others)) = curves.split_first() else { return Vec::new() };
    let at = |x: f64| -> Option<Vec<Option<f64>>> {
        others.iter().map(|curve| Some(curve[curve.binary_search_by(|p| p.0.total_cmp(&x)).ok()?].1)).collect()
    };
    let point = |&(x, y): &(f64, Option<f64>)| {
        let ys: Option<Vec<f64>> = at(x)?.into_iter().chain([y]).map(drawable).collect();
        Some((x, ys.map(|ys| ys.iter().sum::<f64>() / ys.len() as f64)))
    };
    first.iter().filter_map(point).collect()
}

/// The style sheet's classes of a series.
pub(super) fn colour_class(index: usize) -> String {
    let colour = index % COLOURS;
    match index / COLOURS {
        0 => format!("s{colour}"),
        round => format!("s{colour} d{}", (round - 1) % 3),
    }
}

fn drawable(y: Option<f64>) -> Option<f64> {
    y.filter(|y| y.abs() <= LARGEST)
}

pub(super) fn open(height: f64, label: &str) -> String {
    format!("<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">", escape(label))
}

/// A mark at `(x, y)`; its shape tells series apart where colours do not.
pub(super) fn marker(colour: usize, x: f64, y: f64) -> String {
    let d = match colour % 4 {
        0 => return format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\"/>"),
        1 => format!("M{:.1} {:.1}h6.4v6.4h-6.4z", x - 3.2, y - 3.2),
        2 => format!("M{x:.1} {:.1}l4.4 7.6h-8.8z", y - 4.6),
        _ => format!("M{x:.1} {:.1}l4.6 4.6l-4.6 4.6l-4.6 -4.6z", y - 4.6),
    };
    format!("<path class=\"mark\" d=\"{d}\"/>")
}

fn shorten(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.into();
    }
    let mut short: String = text.chars().take(letters.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// At most about `most` points, the lowest and the highest of each stretch.
fn thin(points: &[(f64, Option<f64>)], most: usize) -> Points {
    if points.len() <= most {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(most + 2);
    for group in points.chunks(points.len().div_ceil(most / 2)) {
        let finite = || group.iter().enumerate().filter_map(|(i, p)| Some((i, drawable(p.1)?)));
        let low = finite().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |p| p.0);
        let high = finite().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |p| p.0);
        kept.push(group[low.min(high)]);
        if low != high {
            kept.push(group[low.max(high)]);
        }
    }
    kept
}

/// The plotting area between two axes.
pub(super) struct Frame {
    x_axis: Axis,
    y_axis: Axis,
}

impl Frame {
    pub(super) fn new(x_axis: Axis, y_axis: Axis) -> Frame {
        Frame { x_axis, y_axis }
    }

    pub(super) fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * self.x_axis.place(value)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.y_axis.place(value)
    }

    /// Grid, ticks and the names of the axes.
    pub(super) fn draw(&self, svg: &mut String, y_name: &str, x_name: &str) {
        for (value, label) in &self.y_axis.ticks {
            let y = self.y(*value);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(svg, "<text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>", LEFT - 7.0, y + 4.0);
        }
        let bottom = HEIGHT - BOTTOM;
        for (value, label) in &self.x_axis.ticks {
            let x = self.x(*value);
            let _ = write!(svg, "<path class=\"rule\" d=\"M{x:.1} {bottom:.1}v4\"/>");
            let _ = write!(svg, "<text class=\"tick mid\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", bottom + 21.0);
        }
        let _ = write!(svg, "<path class=\"rule\" d=\"M{LEFT} {bottom:.1}H{:.1}\"/>", WIDTH - RIGHT);
        let y_name = self.y_axis.title(y_name);
        let x_name = self.x_axis.title(x_name);
        let _ = write!(svg, "<text class=\"axis\" x=\"4\" y=\"13\">{}</text>", escape(&y_name));
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        // Without tick labels the axis' name takes their place.
        let y = if self.x_axis.ticks.is_empty() { bottom + 20.0 } else { HEIGHT - 8.0 };
        let _ = write!(svg, "<text class=\"axis mid\" x=\"{middle:.1}\" y=\"{y:.1}\">{}</text>", escape(&x_name));
    }

    /// Path data through the points, broken at gaps.
    pub(super) fn path(&self, points: &[(f64, Option<f64>)]) -> String {
        let mut d = String::new();
        let mut joined = false;
        for (x, y) in points {
            let Some(y) = drawable(*y) else {
                joined = false;
                continue;
            };
            // A point without neighbours becomes a dot, by its round line cap.
            let (command, tail) = if joined { ('L', "") } else { ('M', "h0") };
            let _ = write!(d, "{command}{:.1} {:.1}{tail}", self.x(*x), self.y(y));
            joined = true;
        }
        d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: &[(f64, Option<f64>)]) -> [Series; 1] {
        [Series { name: "a".into(), colour: 0, points: points.to_vec(), raw: Vec::new(), marked: false }]
    }

    #[test]
    fn curves_that_lie_on_one_another_are_all_seen() {
        let curve = |name: &str, colour, y: f64| Series {
            name: name.into(),
            colour,
            points: (0..5).map(|x| (f64::from(x), Some(y))).collect(),
            raw: Vec::new(),
            marked: true,
        };
        let apart = line_chart("loss", &[curve("a", 0, 1.0), curve("b", 1, 2.0)]);
        assert!(!apart.contains("stroke-dasharray") && !apart.contains("the same here"));
        let svg = line_chart("loss", &[curve("a", 0, 1.0), curve("b", 1, 2.0), curve("c<", 2, 1.0)]);
        assert!(svg.contains("stroke-dasharray:9 9;stroke-dashoffset:-0") && svg.contains("stroke-dashoffset:-9"));
        assert_eq!(svg.matches("stroke-dasharray").count(), 2);
        assert!(svg.contains("a, c&lt; are the same here"), "{svg}");
        // markers in turn: three of the first, two of the other, five of the third
        assert_eq!(svg.matches("class=\"mark\"").count(), 10);
        let one = |colour| Series { points: vec![(1.0, Some(0.5))], ..curve("a", colour, 0.0) };
        assert_eq!(line_chart("loss", &[one(0), one(1), one(2)]).matches("class=\"mark\"").count(), 3);
    }

    #[test]
    fn a_mean_is_of_the_steps_that_all_have() {
        let a = vec![(1.0, Some(1.0)), (2.0, Some(3.0)), (3.0, Some(5.0)), (4.0, None)];
        let b = vec![(1.0, Some(3.0)), (3.0, Some(6.0)), (4.0, Some(1.0))];
        assert_eq!(mean(&[a, b]), [(1.0, Some(2.0)), (3.0, Some(5.5)), (4.0, None)]);
        assert_eq!(mean(&[]), []);
    }

    #[test]
    fn gaps_break_the_line() {
        let svg =
            line_chart("loss", &series(&[(1.0, Some(1.0)), (2.0, Some(f64::NAN)), (3.0, Some(0.5)), (4.0, Some(0.4))]));
        let d = svg.split("class=\"line s0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((d.matches('M').count(), d.matches('L').count()), (2, 1), "{d}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn charts_without_values_say_so() {
        assert!(line_chart("loss", &[]).contains("No finite value"));
        assert!(line_chart("loss", &series(&[(1.0, None), (2.0, Some(f64::INFINITY))])).contains("No finite value"));
        assert!(bar_chart("kept", &[], 0).contains("Nothing is kept"));
        assert!(area_chart("memory", &[], &[], None, 0).contains("No timeline"));
    }

    #[test]
    fn extreme_values_stay_inside_the_chart() {
        let one = line_chart("loss", &series(&[(7.0, Some(2.0))]));
        let large = line_chart("loss", &series(&[(0.0, Some(-1e30)), (1.0, Some(1e30)), (2.0, Some(1e300))]));
        let bar = Bar { label: "a".into(), parts: vec![("x".into(), 0, u64::MAX), ("y".into(), 1, u64::MAX)] };
        let bars = bar_chart("kept", &[bar], 0);
        let slice = Slice { phase: "forward".into(), at: "a".into(), bytes: vec![u64::MAX, 1] };
        let layers = [("weights".to_string(), 0), ("kept".to_string(), 1)];
        let area = area_chart("memory", &layers, &[slice], Some((u64::MAX, "peak".into())), 0);
        for svg in [one, large, bars, area] {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn smoothing_averages_neighbours_without_shifting_them() {
        let line: Vec<_> = (0..50).map(|i| (f64::from(i), Some(f64::from(i)))).collect();
        assert!((smooth(&line, 10)[25].1.unwrap() - 25.0).abs() < 1e-9);
        let noise: Vec<_> = (0..50).map(|i| (f64::from(i), Some(f64::from(i % 2)))).collect();
        assert!((smooth(&noise, 10)[25].1.unwrap() - 0.5).abs() < 0.01);
        let gap: Vec<_> = [1.0, f64::NAN, 3.0].iter().map(|y| (0.0, Some(*y))).collect();
        let soft = smooth(&gap, 1000);
        assert!(soft[1].1.is_none() && (soft[0].1.unwrap() - 2.0).abs() < 0.01);
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), Some(if i == 5003 { 9.0 } else { 1.0 }))).collect();
        let thinned = thin(&points, 400);
        assert!(thinned.len() <= 402 && thinned.contains(&(5003.0, Some(9.0))));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(escape("<a b='\"&'>\u{0}\n"), "&lt;a b=&#39;&quot;&amp;&#39;&gt;\\u{0}\n");
    }
}
