//! A first recipe, and the help on the way to it: data given as a recipe, names of other programs, what shells offer.

mod common;

use common::{Place, rows};
use serde_json::Value;

/// The recipe that is written for data and model trains as it is.
#[test]
fn a_recipe_for_a_file_trains() {
    let place = Place::new();
    let reviews = rows(40, 1, None);
    let row = |(i, (text, label)): (usize, &(String, usize))| format!("{i},{text},{}\n", ["poor", "fine"][*label]);
    place.write("reviews.csv", reviews.iter().enumerate().map(row).fold("no,review,mood\n".to_owned(), |a, r| a + &r));
    let init = ["init", "--data", "reviews.csv", "--model", "model"];
    let text = place.ok(&init);
    assert_eq!(place.ok(&[&init[..], &["--out", "mine.toml"]].concat()), "");
    assert_eq!(place.text("mine.toml"), text);
    for needle in [
        "text = \"review\"",
        "label = \"mood\"",
        "# 2 labels: ",
        "path = \"model\"",
        "output = \"runs/reviews\"",
        "lr = 1e-4",
        "# 99 of 100 examples have at most ",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    let summary = place.ok_json(&["train", "mine.toml", "--json", "--set", "train.steps=2"]);
    assert_eq!(summary["steps"], 2);
    assert_eq!(place.names("runs"), ["reviews"]);
    assert!(place.ok(&init).contains("output = \"runs/reviews-2\""), "the run that is there stays");

    // a run's folder is its model's, to evaluate and to go on from
    let eval = |model: &str| place.ok_json(&["eval", "--model", model, "--data", "dev.tsv", "--json"]);
    place.write("dev.tsv", "text\tlabel\ngood\tfine\nbad\tpoor\n");
    assert_eq!(eval("runs/reviews"), eval("runs/reviews/model"));
    let again = ["train.steps=1", "output=again", "model.path=runs/reviews"];
    let sets = again.iter().flat_map(|set| ["--set", set]);
    let summary = place.ok_json(&["train", "mine.toml", "--json"].into_iter().chain(sets).collect::<Vec<_>>());
    assert_eq!(summary["warnings"], Value::Array(vec![]), "the head is there");

    // nothing is written over
    let ran = place.run(&[&init[..], &["--out", "mine.toml"]].concat());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("--out: this file exists"), "{}", ran.err);
    assert_eq!(place.text("mine.toml"), text);
}

#[test]
fn the_way_to_a_recipe_is_told() {
    let place = Place::new();
    place.train(&["train.steps=1"]);
    let fails = |args: &[&str], needles: &[&str]| {
        let ran = place.run(args);
        assert!(ran.code == Some(2) || ran.code == Some(1), "{args:?}: {}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{args:?}: {needle}: {}", ran.err));
        ran.err
    };
    fails(
        &["train", "train.tsv"],
        &["train.tsv: expected a recipe (a TOML file), found data", "colrow init --data train.tsv"],
    );
    fails(&["plan", "model"], &["found a model", "hint: colrow init --model model"]);
    fails(&["train", "run"], &["found a run's folder", "hint: its recipe is run/recipe.toml"]);
    let sets = ["--set", "learning_rate=1", "--set", "train.num_train_epochs=1"];
    fails(
        &[&["train", "recipe.toml"], &sets[..]].concat(),
        &["unknown key `learning_rate`; here it is `optim.lr`", "here it is `train.epochs`"],
    );
    // commands without a recipe speak of arguments
    place.write("odd.csv", "words,mark\ngood,1\n");
    for command in ["eval", "predict"] {
        let told = fails(&[command, "--model", "run/model", "--data", "odd.csv"], &["--text, --pair, --label"]);
        assert!(!told.contains("data.text") && !told.contains("recipe"), "{told}");
    }
}

#[test]
fn shells_offer_tasks_and_keys() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.ok(&["completions", shell]);
        for word in ["optim.lr=", "keep.policy=", "lora.rank=", "stsb", "init"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("keep.sites="), "{shell}");
    }
    // what is offered is not all that is taken
    place.train(&["train.steps=1", "keep.sites.'*'.ratio=0.5", "output=other"]);
    place.ok(&["eval", "--model", "other", "--task", "SST-2", "--data", "dev.tsv"]);
}

/// Conversations get a recipe of their own, and a model that cannot learn them is refused by it.
#[test]
fn conversations_get_a_recipe_of_their_own() {
    let place = Place::new();
    let talk = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    place.write("talk.jsonl", talk);
    let text = place.ok(&["init", "--data", "talk.jsonl"]);
    for needle in [
        "task = \"chat\"",
        "output = \"runs/talk\"",
        "method = \"lora\"",
        "lr = 2e-4",
        "warmup = 0.1",
        "policy = \"lean\"",
        "docs/chat.md",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    let ran = place.run(&["init", "--data", "talk.jsonl", "--model", "model"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("expected a decoder for these conversations, found a BERT"), "{}", ran.err);
}
