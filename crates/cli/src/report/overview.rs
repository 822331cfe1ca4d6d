//! The head of the report: the runs in a few sentences, their key figures, how they compare.

use super::Named;
use super::groups::Spread;
use super::load::Run;
use super::svg::{escape, swatch};
use crate::units;
use std::fmt::Write;

/// A key figure that every run has or may have.
struct Figure {
    /// Its name over a column.
    label: &'static str,
    /// Its name under a single run's value.
    caption: &'static str,
    value: fn(&Run) -> Option<f64>,
    show: fn(f64) -> String,
}

const FIGURES: [Figure; 5] = [
    Figure { label: "Kept", caption: "kept for the backward pass", value: kept, show: |v| units::bytes(v as u64) },
    Figure { label: "Peak memory", caption: "peak memory", value: peak, show: |v| units::bytes(v as u64) },
    Figure {
        label: "Process",
        caption: "peak of the whole process",
        value: |r| r.of(|s| s.peak_rss_bytes).map(|b| b as f64),
        show: |v| units::bytes(v as u64),
    },
    Figure { label: "Step", caption: "a step (median)", value: Run::step_seconds, show: units::duration },
    Figure {
        label: "Tokens/s",
        caption: "tokens per second",
        value: Run::tokens_per_second,
        show: |v| units::count(v.max(0.0).round() as u64),
    },
];

/// The runs in one paragraph.
pub(super) fn lead(runs: &[Named]) -> String {
    let text = match runs {
        [] => "There are no runs in this report.".into(),
        [only] if only.runs.len() == 1 => one_run(only),
        [first, others @ ..] => several_runs(first, others),
    };
    format!("<p class=\"lead\">{text}</p>")
}

/// Key figures: tiles for one run, a table with ratios to the first for several.
pub(super) fn figures(runs: &[Named]) -> String {
    match runs {
        [] => String::new(),
        [only] if only.runs.len() == 1 => tiles(only.run),
        [first, ..] => table(first, runs),
    }
}

fn one_run(named: &Named) -> String {
    let run = named.run;
    let mut text = format!("<b>{}</b>{}", escape(&named.name), task(run));
    let mut done = Vec::new();
    if let Some(epochs) = run.epochs() {
        let epochs = format!("{epochs:.2}").trim_end_matches('0').trim_end_matches('.').to_string();
        done.push(format!("{epochs} {}", if epochs == "1" { "epoch" } else { "epochs" }));
    }
    done.extend(run.steps().map(|n| format!("{} steps", units::count(n))));
    done.extend(run.of(|s| s.examples).map(|n| format!("{} examples", units::count(n))));
    done.extend(run.of(|s| s.seconds).map(units::duration));
    text += &if done.is_empty() { ".".into() } else { format!(": {}.", done.join(", ")) };
    if let (Some(metric), Some((step, best))) = (run.metric(), run.best()) {
        let (name, value) = (escape(&metric), units::number(best));
        let _ = write!(text, " The best {name} is <b>{value}</b>, at step {}", units::count(step));
        let last = run.of(|s| s.last.get(&metric).copied().flatten());
        text += &last.map_or(".".into(), |v| format!("; at the end it is {}.", units::number(v)));
    }
    let mut costs = Vec::new();
    costs.extend(run.kept_bytes().map(|b| format!("keeps <b>{}</b> for the backward pass", units::bytes(b))));
    costs.extend(run.peak_bytes().map(|b| format!("needs <b>{}</b> at its peak", units::bytes(b))));
    costs.extend(run.step_seconds().map(|s| format!("takes <b>{}</b>", units::duration(s))));
    if !costs.is_empty() {
        let _ = write!(text, " A step {}.", join(&costs));
    }
    text
}

fn several_runs(first: &Named, others: &[Named]) -> String {
    let runs = first.runs.len() + others.iter().map(|n| n.runs.len()).sum::<usize>();
    let task = task(first.run);
    let mut text = match others.len() {
        0 => format!("{runs} runs{task} that differ in their seed alone, <b>{}</b>", escape(&first.name)),
        n => {
            let recipes =
                if runs > n + 1 { format!(" of {} recipes, each the mean of its seeds", n + 1) } else { String::new() };
            format!(
                "{runs} runs{task}{recipes}. The first, <b>{}</b>, is what the others are compared with",
                escape(&first.name)
            )
        }
    };
    let mut parts = Vec::new();
    if let (Some(metric), Some(best)) = (first.run.metric(), best(first)) {
        parts.push(format!("its best {} is {}", escape(&metric), units::number(best)));
    }
    let bytes = |b: f64| units::bytes(b as u64);
    parts.extend(first.mean(kept).map(|b| format!("a step keeps {} for the backward pass", bytes(b))));
    parts.extend(first.mean(peak).map(|b| format!("needs {} at its peak", bytes(b))));
    parts.extend(first.mean(Run::step_seconds).map(|s| format!("takes {}", units::duration(s))));
    text += &if parts.is_empty() { ".".into() } else { format!(": {}.", join(&parts)) };
    const FEW: usize = 4;
    let told: Vec<&Named> = if others.len() <= FEW {
        others.iter().collect()
    } else {
        text += " Of the others this one keeps least:";
        others.iter().min_by_key(|n| n.run.kept_bytes().unwrap_or(u64::MAX)).into_iter().collect()
    };
    for other in told {
        let parts = against(first, other);
        if !parts.is_empty() {
            let _ = write!(text, " <b>{}</b> {}.", escape(&other.name), join(&parts));
        }
    }
    text
}

fn kept(run: &Run) -> Option<f64> {
    run.kept_bytes().map(|b| b as f64)
}

fn peak(run: &Run) -> Option<f64> {
    run.peak_bytes().map(|b| b as f64)
}

fn best(named: &Named) -> Option<f64> {
    named.mean(|run| run.best().map(|b| b.1))
}

/// How runs compare with the first, as ends of a sentence.
fn against(first: &Named, other: &Named) -> Vec<String> {
    let ratio =
        |value: fn(&Run) -> Option<f64>| Some(other.mean(value)? / first.mean(value)?).filter(|r| r.is_finite());
    let percent = |r: f64| if r < 0.1 { format!("{:.1} %", r * 100.0) } else { format!("{:.0} %", r * 100.0) };
    let mut parts = Vec::new();
    parts.extend(ratio(kept).map(|r| format!("keeps {} of those bytes", percent(r))));
    parts.extend(ratio(peak).map(|r| format!("needs {} of the peak memory", percent(r))));
    parts.extend(ratio(Run::step_seconds).map(|r| format!("takes {} of the time", percent(r))));
    if let Some((metric, difference)) = metric_difference(first, other) {
        let metric = escape(&metric);
        parts.push(match difference {
            d if d.abs() < 5e-5 => format!("reaches the same best {metric}"),
            d if d > 0.0 => format!("has a best {metric} {} higher", units::number(d)),
            d => format!("has a best {metric} {} lower", units::number(-d)),
        });
    }
    parts
}

/// The metric both are judged by, and by how much the second is above the first.
fn metric_difference(first: &Named, other: &Named) -> Option<(String, f64)> {
    let metric = other.run.metric().filter(|m| first.run.metric().as_ref() == Some(m))?;
    let difference = best(other)? - best(first)?;
    difference.is_finite().then_some((metric, difference))
}

fn tiles(run: &Run) -> String {
    let mut html = String::from("<div class=\"tiles\">");
    let mut tile = |value: String, caption: &str| {
        let _ = write!(html, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(&value), escape(caption));
    };
    if let (Some(metric), Some((_, best))) = (run.metric(), run.best()) {
        tile(units::number(best), &format!("best {metric}"));
    }
    for figure in &FIGURES {
        if let Some(value) = (figure.value)(run) {
            tile((figure.show)(value), figure.caption);
        }
    }
    html + "</div>"
}

fn table(first: &Named, runs: &[Named]) -> String {
    let mut metrics: Vec<String> = Vec::new();
    for metric in runs.iter().filter_map(|n| n.run.metric()) {
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    let seeds = runs.iter().any(|n| n.runs.len() > 1);
    let mut html = String::from("<div class=\"scroll\"><table class=\"compare stack\"><thead><tr><th>Run</th>");
    if seeds {
        html += "<th>Seeds</th>";
    }
    for metric in &metrics {
        let metric = escape(metric);
        let _ = write!(html, "<th>Best {metric}</th><th>Last {metric}</th>");
    }
    for figure in &FIGURES {
        let _ = write!(html, "<th title=\"{}\">{}</th>", figure.caption, figure.label);
    }
    html += "</tr></thead><tbody>";
    let cell = |head: &str, value: Option<String>, small: Option<String>| {
        let small = small.map_or(String::new(), |s| format!("<small>{}</small>", escape(&s)));
        let value = escape(value.as_deref().unwrap_or(units::ABSENT));
        format!("<td data-head=\"{}\"><span>{value}{small}</span></td>", escape(head))
    };
    let shown = |spread: Spread| match spread.deviation {
        Some(d) => format!("{} ± {}", units::number(spread.mean), units::number(d)),
        None => units::number(spread.mean),
    };
    for (i, named) in runs.iter().enumerate() {
        let _ = write!(html, "<tr><th>{} {}</th>", swatch(named.colour), escape(&named.name));
        if seeds {
            html += &cell("Seeds", Some(named.runs.len().to_string()), None);
        }
        for metric in &metrics {
            let own = named.run.metric().as_ref() == Some(metric);
            let best = named.spread(|run| run.best().map(|b| b.1)).filter(|_| own);
            let difference = metric_difference(first, named).filter(|d| i > 0 && d.0 == *metric);
            let sign = |d: f64| ["−", "±", "+"][usize::from(d >= 0.0) + usize::from(d > 0.0)];
            let small = difference.map(|d| format!("{}{}", sign(d.1), units::number(d.1.abs())));
            html += &cell(&format!("Best {metric}"), best.map(shown), small);
            html += &cell(&format!("Last {metric}"), named.spread(|run| run.last(metric)).map(shown), None);
        }
        for figure in &FIGURES {
            let value = named.mean(figure.value);
            let reference = first.mean(figure.value).filter(|r| i > 0 && *r > 0.0);
            let ratio = value.zip(reference).map(|(v, r)| units::ratio(v / r));
            html += &cell(figure.label, value.map(figure.show), ratio);
        }
        html += "</tr>";
    }
    html += "</tbody></table></div><p class=\"small soft\">Small: difference from the first run in the metric, ratio to it elsewhere. \
             Kept: bytes that a step holds from its forward to its backward pass. Peak memory: the most that all tensors took at once; \
             Process: the most that the whole process took.";
    html += if seeds { " Of several seeds the mean, of metrics ± the standard deviation too.</p>" } else { "</p>" };
    html
}

fn task(run: &Run) -> String {
    run.of(|s| s.task.clone()).map_or(String::new(), |t| format!(" on {}", escape(&t)))
}

/// Parts of a sentence as a list.
fn join(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
