//! The report's memory section: what is kept by layer and op, and what is live over a step.

use super::load::{LedgerEntry, Moment, Run};
use super::sites::{self, LayerRow};
use super::svg::{self, Bar, Slice, colour_class, escape};
use super::{Named, figure, legend};
use crate::units;
use std::fmt::Write;

/// Classes of memory from the bottom of the chart, what lives longest first, with their colours.
const CLASSES: [(&str, usize); 6] =
    [("weights", 7), ("optimizer", 0), ("gradients", 5), ("cache", 3), ("kept", 1), ("workspace", 4)];

/// Colours of the ops, the same in every report; an op that is not here is among the others.
const OPS: [(&str, usize); 15] = [
    ("linear", 0),
    ("attention", 1),
    ("layer_norm", 2),
    ("rms_norm", 2),
    ("gelu", 3),
    ("gated_gelu", 3),
    ("relu", 3),
    ("low_rank", 4),
    ("embedding", 5),
    ("tanh", 6),
    ("head_loss", 6),
    ("cross_entropy", 6),
    ("mean_squared_error", 6),
    ("rows", 6),
    ("recompute", 7),
];
const OTHERS: (&str, usize) = ("other ops", 7);

/// A part of less than this share of a chart's axis is not seen.
const SEEN: f64 = 3e-3;

/// The section of the page.
pub(super) fn section(runs: &[Named]) -> String {
    let told = |n: &&Named| !n.run.list(|s| &s.ledger).is_empty() || !n.run.list(|s| &s.timeline).is_empty();
    let told: Vec<&Named> = runs.iter().filter(told).collect();
    let by_class = peak_by_class(runs);
    if told.is_empty() && by_class.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>Memory</h2>\n<p>Bars: what the ops of each layer keep from the forward pass for the backward pass. \
         Areas: everything that is live during one step.",
    );
    html += if told.len() > 1 { " All runs are drawn to one scale.</p>" } else { "</p>" };
    let rows: Vec<Vec<LayerRow>> = told.iter().map(|n| sites::by_layer(n.run.list(|s| &s.ledger))).collect();
    let ops = ops(&rows);
    let most_kept = rows.iter().flatten().map(LayerRow::total).max().unwrap_or(0);
    let live = |n: &&Named| n.run.list(|s| &s.timeline).iter().map(Moment::total).max().max(n.run.peak_bytes());
    let most_live = told.iter().filter_map(live).max().unwrap_or(0);
    for (named, rows) in told.iter().zip(&rows) {
        if runs.len() > 1 {
            let which = if named.runs.len() > 1 { ", its first seed" } else { "" };
            let _ = write!(html, "<h3>{}{which}</h3>", escape(&named.name));
        }
        html += "<div class=\"charts\">";
        html += &figure("Kept bytes by layer and op", "", &kept_chart(rows, &ops, most_kept));
        html += &figure("Live bytes over a step, by class", "", &live_chart(named.run, most_live));
        html += "</div>";
        html += &kept_tables(named.run, rows, &ops);
    }
    html + &by_class
}

/// Every op of the ledgers, most kept bytes first.
fn ops(rows: &[Vec<LayerRow>]) -> Vec<String> {
    let mut ops: Vec<(String, u64)> = Vec::new();
    for (op, bytes) in rows.iter().flatten().flat_map(|r| &r.ops) {
        match ops.iter_mut().find(|o| o.0 == *op) {
            Some(known) => known.1 = known.1.saturating_add(*bytes),
            None => ops.push((op.clone(), *bytes)),
        }
    }
    ops.sort_by_key(|o| std::cmp::Reverse(o.1));
    ops.into_iter().map(|o| o.0).collect()
}

fn kept_chart(rows: &[LayerRow], ops: &[String], most: u64) -> String {
    let colour = |op: &str| OPS.iter().find(|o| o.0 == op).map_or(OTHERS.1, |o| o.1);
    let known = |op: &String| OPS.iter().any(|o| o.0 == op);
    let (mut named, others): (Vec<&String>, Vec<&String>) = ops.iter().partition(|op| known(op));
    named.sort_by_key(|op| OPS.iter().position(|o| o.0 == op.as_str()));
    let parts = |row: &LayerRow| {
        let mut parts: Vec<_> = named.iter().map(|op| (op.to_string(), colour(op), row.bytes(op))).collect();
        let bytes = others.iter().fold(0u64, |sum, op| sum.saturating_add(row.bytes(op)));
        parts.push((OTHERS.0.to_owned(), OTHERS.1, bytes));
        parts
    };
    let bars: Vec<Bar> = rows.iter().map(|r| Bar { label: r.label.clone(), parts: parts(r) }).collect();
    let mut seen: Vec<(usize, &str)> = Vec::new();
    for (name, colour, _) in bars.iter().flat_map(|b| &b.parts).filter(|p| p.2 as f64 > most as f64 * SEEN) {
        if !seen.contains(&(*colour, name)) {
            seen.push((*colour, name));
        }
    }
    seen.sort_unstable();
    let chart = svg::bar_chart("kept bytes by layer and op", &bars, most);
    legend(seen.iter().map(|(colour, name)| (colour_box(*colour), name.to_string()))) + &chart
}

fn live_chart(run: &Run, most: u64) -> String {
    let timeline = run.list(|s| &s.timeline);
    let mut layers: Vec<(String, usize)> = CLASSES.iter().map(|c| (c.0.to_string(), c.1)).collect();
    for class in timeline.iter().flat_map(|m| m.live.keys()) {
        if !layers.iter().any(|l| l.0 == *class) {
            layers.push((class.clone(), [2, 6][layers.len() % 2]));
        }
    }
    let largest = |class: &str| timeline.iter().filter_map(|m| m.live.get(class).copied()).max().unwrap_or(0);
    layers.retain(|l| largest(&l.0) > 0);
    let slice = |m: &Moment| Slice {
        phase: m.phase.clone(),
        at: m.at.clone(),
        bytes: layers.iter().map(|l| m.live.get(&l.0).copied().unwrap_or(0)).collect(),
    };
    let slices: Vec<Slice> = timeline.iter().map(slice).collect();
    let traced = timeline.iter().map(Moment::total).max();
    let peak = run.peak_bytes().map(|b| match traced {
        // of the steps only some are traced, and of evaluations none
        Some(traced) if traced < b => (b, format!("peak of the run, elsewhere: {}", units::bytes(b))),
        _ => (b, format!("peak {}", units::bytes(b))),
    });
    let chart = svg::area_chart("live bytes over a step, by class", &layers, &slices, peak, most);
    let seen = layers.iter().rev().filter(|l| largest(&l.0) as f64 > most as f64 * SEEN);
    legend(seen.map(|l| (colour_box(l.1), l.0.clone()))) + &chart + &what_sets_the_peak(run)
}

/// Where the largest moment of the step is, and what is live then.
fn what_sets_the_peak(run: &Run) -> String {
    let Some(moment) = run.list(|s| &s.timeline).iter().reduce(|a, b| if b.total() > a.total() { b } else { a }) else {
        return String::new();
    };
    let mut parts: Vec<(&str, u64)> = moment.live.iter().map(|(class, bytes)| (class.as_str(), *bytes)).collect();
    let share = |bytes: u64| 100.0 * bytes as f64 / moment.total().max(1) as f64;
    parts.retain(|p| share(p.1) >= 0.5);
    parts.sort_by_key(|p| std::cmp::Reverse(p.1));
    let words: Vec<String> =
        parts.iter().map(|p| format!("{} {} ({:.0} %)", escape(p.0), units::bytes(p.1), share(p.1))).collect();
    format!(
        "<p class=\"small soft\">▾ The largest moment, {}: {} <b>{}</b>. Live then: {}.</p>",
        units::bytes(moment.total()),
        escape(&moment.phase),
        escape(&moment.at),
        words.join(", ")
    )
}

fn kept_tables(run: &Run, rows: &[LayerRow], ops: &[String]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<details><summary>Kept bytes in numbers</summary><div class=\"scroll\"><table><thead><tr><th>Layer</th>",
    );
    for op in ops {
        let _ = write!(html, "<th>{}</th>", escape(op));
    }
    html += "<th>Total</th></tr></thead><tbody>";
    let cell = |bytes: u64| {
        if bytes == 0 {
            return "<td class=\"soft\">0</td>".to_string();
        }
        format!("<td title=\"{} bytes\">{}</td>", units::count(bytes), units::bytes(bytes))
    };
    let line = |label: &str, bytes: &dyn Fn(&str) -> u64, total: u64| {
        let cells: String = ops.iter().map(|op| cell(bytes(op))).collect();
        format!("<tr><th>{}</th>{cells}{}</tr>", escape(label), cell(total))
    };
    for row in rows {
        html += &line(&row.label, &|op| row.bytes(op), row.total());
    }
    let sum = |bytes: &dyn Fn(&LayerRow) -> u64| rows.iter().fold(0u64, |sum, r| sum.saturating_add(bytes(r)));
    let all = line("Total", &|op| sum(&|r| r.bytes(op)), sum(&LayerRow::total));
    let _ = write!(html, "</tbody><tfoot>{all}</tfoot></table></div>");
    html += "<div class=\"scroll\"><table><thead><tr><th>Site</th><th class=\"text\">Op</th><th class=\"text\">What</th>\
             <th class=\"text\">Kept as</th><th>Bytes</th><th>Times</th><th>Total</th></tr></thead><tbody>";
    let entry = |e: &LedgerEntry| (e.site.clone(), (e.op.clone(), e.what.clone(), sites::keep_words(&e.keep), e.bytes));
    for (site, times, (op, what, keep, bytes)) in
        sites::join_layers(run.list(|s| &s.ledger).iter().map(entry).collect())
    {
        let _ = write!(
            html,
            "<tr><th>{}</th><td class=\"text\">{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td>{}<td>{times}</td>{}</tr>",
            escape(&site),
            escape(&op),
            escape(&what),
            escape(&keep),
            cell(bytes),
            cell(bytes.saturating_mul(times as u64))
        );
    }
    html + "</tbody></table></div></details>"
}

fn peak_by_class(runs: &[Named]) -> String {
    let of = |n: &Named, class: &str| n.run.of(|s| s.peak_bytes_by_class.get(class).copied());
    let mut classes: Vec<&str> = CLASSES.iter().map(|c| c.0).collect();
    let told = runs.iter().filter_map(|n| n.run.summary.as_ref()).flat_map(|s| s.peak_bytes_by_class.keys());
    for class in told {
        if !classes.contains(&class.as_str()) {
            classes.push(class);
        }
    }
    classes.retain(|c| runs.iter().any(|n| of(n, c).is_some()));
    if classes.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h3>At the moment of the peak</h3><p>What is live then, by class. What is kept then is not what a step keeps in all: gradients grow \
         while kept bytes are given back.</p><div class=\"scroll\"><table><thead><tr><th>Class</th>",
    );
    for n in runs {
        let _ = write!(html, "<th>{}</th>", escape(&n.name));
    }
    html += "</tr></thead><tbody>";
    for class in classes {
        let name = if class == "kept" { "kept, at the peak" } else { class };
        let _ = write!(html, "<tr><th>{}</th>", escape(name));
        for n in runs {
            let _ = write!(html, "<td>{}</td>", of(n, class).map_or(units::ABSENT.into(), units::bytes));
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn colour_box(colour: usize) -> String {
    format!("<i class=\"box {}\"></i>", colour_class(colour))
}
