//! Keys of a recipe that change nothing, because another key or the data has no use for them.

use std::path::Path;

use colrow_autograd::Keep;
use colrow_models::family::HeadKind;
use colrow_models::net::Site;

use crate::keeping::{draws, site_keep};
use crate::recipe::{Data, Keeping, Lora, Method, Model, Recipe};
use crate::tasks::Task;

/// Keys that differ from their defaults and are not read, each with the reason. `head` is the model's, `sites` are all of them.
pub(crate) fn keys(recipe: &Recipe, task: Task, head: HeadKind, sites: &[Site]) -> Option<String> {
    let Recipe { model, data, train, lora, keep, .. } = recipe;
    let mut all = Unused(Vec::new());

    let usual = Model::default();
    if Path::new(&model.path).is_dir() {
        all.because("model.path is a folder", &[("model.revision", model.revision != usual.revision)]);
    }

    let usual = Data::default();
    if data.dev.is_some() {
        all.because("data.dev is given", &[("data.dev_share", data.dev_share != usual.dev_share)]);
    }
    if head != HeadKind::Language {
        let differs = data.max_target_length != usual.max_target_length;
        all.because("the model does not answer in text", &[("data.max_target_length", differs)]);
    }
    let labelled = [
        ("data.pair", data.pair.is_some()),
        ("data.label", data.label.is_some()),
        ("data.positive", data.positive.is_some()),
    ];
    let keys = &data.keys;
    let conversations = [
        ("data.messages", keys.messages.is_some()),
        ("data.role", keys.role.is_some()),
        ("data.content", keys.content.is_some()),
        ("data.roles", !keys.roles.is_empty()),
        ("data.prompt", keys.prompt.is_some()),
        ("data.completion", keys.completion.is_some()),
        ("data.date", data.date.is_some()),
    ];
    let of_task = format!("task = \"{}\"", task.name());
    if task.is_of_tokens() {
        all.because(&of_task, &labelled);
    } else {
        all.because(&of_task, &[("data.train_on", data.train_on.is_some())]);
    }
    if task == Task::Chat {
        all.because(&of_task, &[("data.text", data.text.is_some())]);
    } else {
        all.because(&of_task, &conversations);
    }

    let usual = Lora::default();
    if !matches!(train.method, Method::Lora | Method::LoraFa) {
        let keys = [
            ("lora.rank", lora.rank != usual.rank),
            ("lora.alpha", lora.alpha != usual.alpha),
            ("lora.dropout", lora.dropout != usual.dropout),
            ("lora.rank_stabilised", lora.rank_stabilised),
            ("lora.targets", lora.targets.is_some()),
        ];
        all.because(&format!("train.method = \"{}\"", train.method), &keys);
    }

    let usual = Keeping::default();
    let kept: Vec<Keep> = sites.iter().map(|site| site_keep(keep, site)).collect();
    let no_rows = format!("no site draws rows under keep.policy = \"{}\"", keep.policy);
    if !sites.iter().any(|site| draws(keep, site)) {
        all.because(&no_rows, &[("keep.estimator", keep.estimator != usual.estimator)]);
    }
    if !kept.iter().any(|kept| matches!(kept, Keep::Rows(_))) {
        all.because(&no_rows, &[("keep.ratio", keep.ratio != usual.ratio), ("keep.norms", keep.norms.is_some())]);
    }
    if !kept.iter().any(|kept| matches!(kept, Keep::Rows(sampling) if sampling.remembers())) {
        let keys = [("keep.uniform", keep.uniform != usual.uniform), ("keep.cache", keep.cache != usual.cache)];
        all.because("no rows are drawn by norms of earlier steps", &keys);
    }
    if !keep.chooses_ratios() {
        let keys = [
            ("keep.auto_every", keep.auto_every != usual.auto_every),
            ("keep.auto_share", keep.auto_share != usual.auto_share),
        ];
        all.because("no ratio is \"auto\"", &keys);
    }
    all.text()
}

/// Reasons, each with its keys.
struct Unused(Vec<String>);

impl Unused {
    /// Notes those of `keys` that are set.
    fn because(&mut self, reason: &str, keys: &[(&str, bool)]) {
        let set: Vec<&str> = keys.iter().filter_map(|&(key, is_set)| is_set.then_some(key)).collect();
        if !set.is_empty() {
            self.0.push(format!("{} ({reason})", set.join(", ")));
        }
    }

    fn text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| format!("keys of the recipe that change nothing: {}", self.0.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use colrow_autograd::RowsOf;
    use colrow_models::net::SiteKind;

    use super::*;

    fn told(task: Task, head: HeadKind, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let recipe = Recipe::parse("model.path = 'm'", "test", &sets).unwrap();
        let sites = [Site { name: "l.down".into(), kind: SiteKind::Linear, rows: RowsOf::Tokens, in_paper: true }];
        keys(&recipe, task, head, &sites).unwrap_or_default()
    }

    #[test]
    fn keys_without_use_are_told_with_the_reason() {
        let all = [
            (Task::Classify, "data.date=2026-01-01", "data.date (task = \"classify\")"),
            (Task::Classify, "data.train_on=last", "data.train_on (task"),
            (Task::Chat, "data.label=y", "data.label (task = \"chat\")"),
            (Task::Text, "data.role=x", "data.role (task = \"text\")"),
            (Task::Classify, "data.max_target_length=9", "data.max_target_length (the model does not answer in text)"),
            (Task::Classify, "lora.rank=4", "lora.rank (train.method = \"full\")"),
            (Task::Classify, "keep.ratio=0.1", "keep.ratio (no site draws rows under keep.policy = \"exact\")"),
            (Task::Classify, "keep.estimator=wta", "keep.estimator (no site draws rows"),
            (Task::Classify, "keep.uniform=0.5", "keep.uniform (no rows are drawn by norms of earlier steps)"),
            (Task::Classify, "keep.auto_every=3", "keep.auto_every (no ratio is \"auto\")"),
        ];
        for (task, set, expected) in all {
            let told = told(task, HeadKind::Classifier, &[set]);
            let text = format!("keys of the recipe that change nothing: {expected}");
            assert!(told.starts_with(&text) && !told.contains(';'), "{set}: {told}");
        }
        let two = told(
            Task::Classify,
            HeadKind::Classifier,
            &["data.dev=d", "data.dev_share=0.5", "lora.rank=4", "lora.alpha=2"],
        );
        assert!(
            two.ends_with("data.dev_share (data.dev is given); lora.rank, lora.alpha (train.method = \"full\")"),
            "{two}"
        );
    }

    #[test]
    fn keys_with_use_are_not_told() {
        for (task, head, sets) in [
            (Task::Classify, HeadKind::Classifier, &[][..]),
            (
                Task::Classify,
                HeadKind::Classifier,
                &["keep.policy=lean", "keep.ratio=0.1", "keep.estimator=wta", "data.label=y"],
            ),
            (
                Task::Classify,
                HeadKind::Classifier,
                &["keep.sites.\"*\".keep=rows", "keep.ratio=0.1", "keep.uniform=0.5"],
            ),
            (Task::Classify, HeadKind::Classifier, &["keep.policy=lean", "keep.estimator=exact", "data.dev_share=0.5"]),
            (
                Task::Classify,
                HeadKind::Classifier,
                &["keep.policy=paper", "keep.ratio=auto", "keep.bytes=1MiB", "keep.cache=file"],
            ),
            (Task::Classify, HeadKind::Language, &["data.max_target_length=9", "train.method=lora-fa", "lora.rank=4"]),
            (Task::Chat, HeadKind::Causal, &["data.role=x", "data.train_on=last", "data.date=2026-01-01"]),
            (Task::Text, HeadKind::Causal, &["data.text=x", "data.train_on=all", "model.revision=v1"]),
        ] {
            assert_eq!(told(task, head, sets), "", "{sets:?}");
        }
    }
}
