//! The plan as the program tells it: what the process holds, what fits, and what is refused.

mod common;

use common::{Place, VOCABULARY, config, finish, random, rows, t5_config, tsv};
use serde_json::{Value, json};

const MIB: f64 = (1 << 20) as f64;

fn bytes(json: &Value, key: &str) -> f64 {
    json[key].as_f64().unwrap_or_else(|| panic!("{key}: {json}"))
}

/// `colrow plan recipe.toml --json` with `--set` arguments and others.
fn plan(place: &Place, sets: &[&str], more: &[&str]) -> Value {
    let mut args = vec!["plan", "recipe.toml", "--json"];
    args.extend(sets.iter().flat_map(|s| ["--set", s]));
    args.extend(more);
    place.ok_json(&args)
}

/// Larger than [`common::config`], so that a step needs some hundred MiB and the program itself does not decide.
fn wide_bert() -> Value {
    let mut json = config();
    for (key, value) in [("hidden_size", 192), ("num_hidden_layers", 4), ("num_attention_heads", 3)] {
        json[key] = value.into();
    }
    for (key, value) in [("intermediate_size", 768), ("max_position_embeddings", 128), ("vocab_size", 8000)] {
        json[key] = value.into();
    }
    json
}

fn wide_t5() -> Value {
    let mut json = t5_config();
    for (key, value) in [("d_model", 192), ("d_kv", 64), ("num_heads", 3), ("d_ff", 768), ("num_layers", 4)] {
        json[key] = value.into();
    }
    json["vocab_size"] = 8000.into();
    json
}

/// The peak resident set is at most the planned one and 5 %, and at least the meter's peak less 5 %. The planned one is the peak, what the
/// process held before it, and the stated constant; here all that is beside the peak is less than 48 MiB.
#[cfg(target_os = "linux")]
#[track_caller]
fn holds(what: &str, run: &Value) {
    let of = |key: &str| bytes(run, key) / MIB;
    let (peak, planned, process) = (of("planned_peak_bytes"), of("planned_process_bytes"), of("peak_rss_bytes"));
    let told = format!("{what}: {process:.1} MiB in the process, {planned:.1} planned, {peak:.1} of it on the meter");
    assert_eq!(run["peak_bytes"], run["planned_peak_bytes"], "{told}");
    assert_eq!(run["kept_bytes"], run["planned_kept_bytes"], "{told}");
    assert!(peak > 60.0 && planned - peak < 48.0, "{told}");
    assert!(process <= planned + 0.05 * peak && process >= 0.95 * peak, "{told}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_holds_what_bench_plans() {
    let place = Place::new();
    place.write("bert.json", wide_bert().to_string());
    place.write("t5.json", wide_t5().to_string());
    for (model, batch) in [("bert.json", "40"), ("t5.json", "40")] {
        for (method, keep, lengths) in [
            ("full", "exact", "equal"),
            ("full", "paper", "uniform"),
            ("full", "lean", "uniform"),
            ("full", "recompute", "equal"),
            ("lora", "exact", "uniform"),
            ("lora", "leanest", "equal"),
        ] {
            let what =
                ["--model-config", model, "--batch", batch, "--method", method, "--keep", keep, "--lengths", lengths];
            let how = ["bench", "--seq", "128", "--steps", "2", "--warmup", "0", "--threads", "2", "--json"];
            let base: &[&str] = match method {
                "lora" => &["--base", "int8"],
                _ => &[],
            };
            holds(&what.join(" "), &place.ok_json(&[&how[..], &what, base].concat()));
        }
    }
}

/// Every batch of an epoch is the whole set, so that the largest is met: ragged, evaluated and saved between steps.
#[test]
#[cfg(target_os = "linux")]
fn the_process_holds_what_train_plans() {
    let place = Place::new();
    let long = |n: u64, seed: u64| {
        (0..n).flat_map(|i| rows(2, seed + i, Some(10 + 5 * (i as usize % 20)))).collect::<Vec<_>>()
    };
    place.write("train.tsv", tsv(&long(16, 1)));
    place.write("dev.tsv", tsv(&long(6, 90)));
    place.model("bert", &wide_bert());
    place.t5("t5", &wide_t5());
    let common = ["data.max_length=128", "train.steps=5", "train.eval_every=2", "train.save_every=2"];
    for (i, sets) in [
        ["model.path=./bert", "train.batch=32", "keep.policy=exact"],
        ["model.path=./bert", "train.batch_tokens=5000", "keep.policy=paper"],
        ["model.path=./t5", "train.batch=32", "keep.policy=lean"],
        ["model.path=./t5", "train.batch_tokens=5000", "train.method=lora"],
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = common::RECIPE.replace("batch = 8\n", "").replace("classify", "sst2");
        place.write("recipe.toml", recipe);
        let output = format!("output=run{i}");
        holds(&sets.join(" "), &place.train(&[&common[..], &sets, &[&output]].concat()));
    }
}

/// `n` texts of 3 to 30 words with `labels` labels, each of them once before any comes again.
fn labelled(n: usize, labels: usize, seed: &mut u64) -> String {
    let row = |i: usize| {
        let words = 3 + random(seed, 28);
        let text: Vec<&str> = (0..words).map(|_| VOCABULARY[4 + random(seed, 12)]).collect();
        format!("{}\tc{:05}\n", text.join(" "), i % labels)
    };
    (0..n).map(row).fold("sentence\tlabel\n".into(), |all, row| all + &row)
}

/// A recipe of random settings over random data of at most `most` labels, and what to call it.
#[cfg(target_os = "linux")]
fn random_recipe(place: &Place, seed: u64, most: usize) -> (Vec<String>, String) {
    let mut seed = seed;
    let mut pick = |below: usize| random(&mut seed, below);
    let one = |of: &[&str], at: usize| of[at % of.len()].to_owned();
    let text_to_text = pick(5) == 0;
    // as many labels of one as of another order of magnitude
    let labels = 2.0 * (most as f64 / 2.0).powf(pick(1001) as f64 / 1000.0);
    let labels = if text_to_text { 2 } else { labels.round() as usize };
    let examples = labels + pick(2 * labels + 300);
    let evaluated = 1 + pick(examples);
    let largest = [8, 64, examples.min(600)][pick(3)];
    let batch = 1 + pick(largest);
    let mut sets = vec![
        format!("model.path=./{}", if text_to_text { "t5" } else { "bert" }),
        format!("keep.policy={}", one(&["exact", "paper", "lean", "leanest", "recompute"], pick(5))),
        format!("optim.states={}", one(&["f32", "8bit"], pick(2))),
        format!("keep.cache={}", one(&["memory", "file"], pick(2))),
        format!("data.max_length={}", 8 + pick(25)),
        format!("train.steps={}", 1 + pick(4)),
        "train.eval_every=1".into(),
        "train.save_every=2".into(),
    ];
    sets.push(match pick(3) {
        0 => format!("train.batch_tokens={}", 40 + 10 * batch),
        _ => format!("train.batch={batch}"),
    });
    sets.push(match pick(4) {
        0 => format!("train.accumulate={}", 2 + pick(5)),
        1 => "optim={update='in-backward', clip=0}".into(),
        _ => "train.accumulate=1".into(),
    });
    match pick(4) {
        0 => sets.push("train.method=lora".into()),
        1 if !text_to_text => sets.push("train.method=bitfit".into()),
        _ => {}
    }
    if sets.last().is_some_and(|set| set.starts_with("train.method=")) {
        sets.push(format!("model.base={}", one(&["f32", "bf16", "int8", "nf4"], pick(4))));
    }
    if pick(5) == 0 && sets[1] != "keep.policy=exact" {
        sets.push("keep.ratio=auto".into());
    }
    let named = |text: String| if text_to_text { text.replace("c0000", "") } else { text };
    let task = if text_to_text { "sst2" } else { "classify" };
    place.write("train.tsv", named(labelled(examples, labels, &mut seed)));
    place.write("dev.tsv", named(labelled(evaluated, labels, &mut seed)));
    place.write("recipe.toml", common::RECIPE.replace("batch = 8\n", "").replace("\"classify\"", &format!("{task:?}")));
    let what = format!("{labels} labels, {examples} and {evaluated} examples, {}", sets.join(" "));
    (sets, what)
}

/// The plan is never below the run, on the meter and in the process, whatever the recipe and however many labels. Eight small recipes; for
/// the table of many, `COLROW_PLANS=60 COLROW_PLAN_LABELS=20000 cargo test --release -p colrow --test plan random_recipes -- --nocapture`.
#[test]
#[cfg(target_os = "linux")]
#[expect(clippy::print_stdout, reason = "the table")]
fn random_recipes_need_no_more_than_planned() {
    let setting = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (count, most) = (setting("COLROW_PLANS", 8), setting("COLROW_PLAN_LABELS", 3000));
    let first = setting("COLROW_PLAN_SEED", 1);
    let place = Place::new();
    place.model("bert", &config());
    place.t5("t5", &t5_config());
    let mut rows = Vec::new();
    for i in 0..count {
        let (mut sets, what) = random_recipe(&place, 1000 * first as u64 + i as u64, most);
        sets.push(format!("output=run{i}"));
        let mut args = vec!["train", "recipe.toml", "--json", "--threads", "2"];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        let run = place.ok_json(&args);
        let of = |key: &str| bytes(&run, key);
        assert!(of("peak_bytes") <= of("planned_peak_bytes"), "{what}: {run}");
        assert!(of("kept_bytes") <= of("planned_kept_bytes"), "{what}: {run}");
        rows.push((
            of("peak_rss_bytes") / of("planned_process_bytes"),
            of("peak_bytes") / of("planned_peak_bytes"),
            what,
        ));
        std::fs::remove_dir_all(place.path(&format!("run{i}"))).unwrap();
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (process, meter, what) in &rows {
        println!("{process:.3} of the planned process, {meter:.3} of the planned meter: {what}");
    }
    assert!(rows.iter().all(|row| row.0 <= 1.0), "{:?}", rows[0]);
}

/// Where steps are small and the development texts long, the evaluation's peak is the run's.
#[test]
fn evaluations_are_planned_too() {
    let place = Place::new();
    place.t5("t5", &t5_config());
    place.write("train.tsv", tsv(&rows(6, 1, Some(1))));
    place.write("dev.tsv", tsv(&[rows(1, 2, Some(3)), rows(1, 3, Some(29)), rows(2, 4, Some(7))].concat()));
    place.write("recipe.toml", common::RECIPE.replace("classify", "sst2"));
    for (i, model) in ["model.path=./model", "model.path=./t5"].into_iter().enumerate() {
        for (j, size) in ["train.batch=1", "train.batch=3"].into_iter().enumerate() {
            let output = format!("output=run{i}{j}");
            let sets = [model, size, "train.method=bitfit", "train.modules_to_save=[]", "train.epochs=1", &output];
            // a T5 has no biases to train
            let sets = if i == 0 {
                sets
            } else {
                [&sets[..2], &["train.method=lora"], &sets[3..]].concat().try_into().unwrap()
            };
            let (plan, run) = (plan(&place, &sets, &[]), place.train(&sets));
            assert_eq!(plan["evaluation_peak_bytes"], plan["peak_bytes"], "{sets:?}");
            assert_eq!(plan["peak_bytes_by_class"], run["peak_bytes_by_class"], "{sets:?}");
        }
    }
    let text = place.ok(&["plan", "recipe.toml", "--set", "train.batch=1", "--set", "train.method=bitfit"]);
    assert!(text.contains(" in an evaluation\n") && text.contains("\nprocess "), "{text}");
    // an evaluation that cannot run is found before the first step
    let args = ["plan", "recipe.toml", "--set", "train.batch_tokens=20"];
    let ran = place.run(&args);
    assert_eq!(ran.code, Some(2), "{}", ran.out);
    assert!(ran.err.contains("example 2 has 31 tokens, more than a batch may hold (20)"), "{}", ran.err);
}

/// What is said to fit is what the plan says of the recipe with those arguments.
#[test]
fn what_fits_is_what_is_planned() {
    let place = Place::new();
    place.model("bert", &wide_bert());
    place.write("train.tsv", tsv(&rows(200, 1, None)));
    place.write("dev.tsv", tsv(&rows(4, 2, Some(3))));
    let base = ["model.path=./bert", "train.batch=100"];
    let whole = plan(&place, &base, &[]);
    let (process, kept) = (bytes(&whole, "process_bytes"), bytes(&whole, "kept_bytes"));
    let fits = |sets: &[&str], memory: f64| {
        let memory = memory.round().to_string();
        let planned = plan(&place, sets, &["--memory", &memory]);
        assert_eq!(planned["memory_bytes"].to_string(), memory);
        let fits = planned["fits"].as_array().unwrap().clone();
        for fit in &fits {
            assert!(bytes(fit, "process_bytes") <= memory.parse().unwrap(), "{fit}");
            let more: Vec<&str> = fit["set"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
            let again = plan(&place, &[sets, &more].concat(), &[]);
            assert_eq!(again["peak_bytes"], fit["peak_bytes"], "{fit}");
        }
        fits
    };
    let found = |fits: &[Value]| fits.iter().map(|f| f["found"].as_str().unwrap().to_owned()).collect::<Vec<_>>();

    let all = fits(&base, process + 1e7);
    assert_eq!(found(&all)[..2], ["as_it_is", "largest_batch"], "{all:?}");
    assert_eq!((&all[0]["policy"], &all[0]["ratio"], &all[0]["batch"]), (&json!("exact"), &json!(1.0), &json!(100)));
    assert!(all[1]["batch"].as_u64() > Some(100) && all[1]["set"].as_array().unwrap().len() == 1);

    let some = fits(&base, process - 0.2 * kept);
    let of = |fits: &[Value], name: &str| {
        fits.iter().find(|f| f["found"] == name).unwrap_or_else(|| panic!("{name}: {fits:?}")).clone()
    };
    let [added_up, cheapest] = ["accumulation", "cheapest_policy"].map(|name| of(&some, name));
    assert_eq!((&some[0], &added_up["policy"], &added_up["states"]), (&added_up, &json!("exact"), &json!("f32")));
    let [batch, accumulate] = ["batch", "accumulate"].map(|key| added_up[key].as_u64().unwrap());
    assert!(accumulate > 1 && batch * accumulate == 100, "{added_up}");
    assert_eq!((&cheapest["policy"], &cheapest["batch"]), (&json!("lean"), &json!(100)));
    let [largest, leanest] = ["largest_batch", "leanest_policy"].map(|name| of(&some, name));
    assert!(largest["batch"].as_u64() < Some(100) && largest["policy"] == "exact");
    assert!(leanest["batch"].as_u64() > largest["batch"].as_u64());

    let tokens = fits(&["model.path=./bert", "train.batch_tokens=1000"], process - 0.77 * kept);
    for name in ["accumulation", "largest_batch", "leanest_policy"] {
        let fit = of(&tokens, name);
        assert!(fit["batch_tokens"].as_u64() < Some(1000) && fit["batch"].is_null(), "{fit}");
    }

    // all of a model's states at once do not fit, nor does any policy mend that
    let least = ["keep.policy=recompute", "optim.states=8bit", "optim.update=in-backward", "optim.clip=0"];
    let room = bytes(&plan(&place, &[&base[..], &least].concat(), &[]), "process_bytes") + 3e6;
    let fit = of(&fits(&base, room), "in_backward");
    assert_eq!((&fit["update"], &fit["states"], &fit["batch"]), (&json!("in-backward"), &json!("8bit"), &json!(100)));
    assert_eq!(fit["gives_up"][0], "optim.clip=0: the gradient is no longer clipped to 1");
    let text =
        place.ok(&["plan", "recipe.toml", "--set", base[0], "--set", base[1], "--memory", &format!("{room:.0}")]);
    assert!(text.contains("\nupdates in the backward pass ") && text.contains("\nnote: optim.clip=0: "), "{text}");
    let one = plan(&place, &[&["model.path=./bert", "train.batch=1", "data.max_length=16"], &least[..]].concat(), &[]);
    let shorter = fits(&["model.path=./bert", "train.batch=100"], bytes(&one, "process_bytes") - 3e6);
    assert!(shorter.iter().all(|f| f["found"] == "lora" && f["method"] == "lora"), "{shorter:?}");

    // ratios that the run chooses, of at least two sequences, under policies that draw rows
    let auto = fits(&[&base[..], &["keep.policy=lean", "keep.ratio=auto"]].concat(), process - 0.2 * kept);
    assert_eq!(found(&auto)[..2], ["as_it_is", "largest_batch"], "{auto:?}");
    assert!(auto.iter().all(|fit| fit["ratio"] == "auto" && fit["policy"] != "exact"), "{auto:?}");

    let text = place.ok(&["plan", "recipe.toml", "--memory", "8GiB"]);
    assert!(text.contains("\nas it is "), "{text}");
    assert!(text.contains("\nkept  ") && text.contains("\n  kept then  "), "{text}");
}

#[test]
fn what_does_not_fit_is_a_failure_with_its_figures() {
    let place = Place::new();
    let plan = |memory: &str, more: &[&str]| place.run(&[&["plan", "recipe.toml", "--memory", memory], more].concat());
    let ran = plan("1KiB", &[]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), "error: nothing fits into 1.00 KiB\n"));
    assert!(ran.out.contains("largest step") && ran.out.contains("within 1.00 KiB:\nnothing fits into 1.00 KiB"));
    let ran = plan("1048576", &["--json"]);
    let planned: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &planned["fits"], &planned["memory_bytes"]), (Some(1), &json!([]), &json!(1 << 20)));
    assert!(planned["peak_bytes"].as_u64() > Some(0), "{planned}");
    for (memory, needle) in [
        ("8G", "expected a size such as 8GiB, 512MiB, 8GB or a number of bytes"),
        ("300", "expected a size with its unit, such as 300MiB or 300GiB"),
        ("1.5", "such as 1.5MiB"),
        ("1048575", "with its unit"),
    ] {
        let ran = plan(memory, &[]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{memory}");
        assert!(ran.err.contains(needle), "{}", ran.err);
    }
}

/// Rows behind the last block that is run again are kept, which is that policy's and nobody's mistake; elsewhere it is told.
#[test]
fn a_policy_is_not_warned_of_itself() {
    let place = Place::new();
    place.model("bert", &wide_bert());
    let warned = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        let ran = place
            .run(&["plan", "recipe.toml", "--set", "model.path=./bert"].into_iter().chain(sets).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        (ran.err.contains("nothing rebuilds them"), ran.out.contains("nothing rebuilds them"))
    };
    for more in [&[][..], &["train.method=lora"], &["optim.states=8bit"]] {
        assert_eq!(warned(&[&["keep.policy=recompute"], more].concat()), (false, true), "{more:?}");
    }
    let site = "keep.sites.'*.self.*'={keep='rows'}";
    assert_eq!(warned(&["keep.policy=recompute", site]), (true, true));
}

/// Who sets a ratio and leaves the policy as it is keeps all, and may not see it.
#[test]
fn keys_that_change_nothing_are_told() {
    let place = Place::new();
    let plan = |policy: &str| {
        place.run(&["plan", "recipe.toml", "--set", "keep.ratio=0.1", "--set", &format!("keep.policy={policy}")]).err
    };
    let told = plan("exact");
    let text = "warning: keys of the recipe that change nothing: keep.ratio (no site draws rows under keep.policy = \"exact\")";
    assert!(told.contains(text), "{told}");
    assert!(!plan("lean").contains("change nothing"));
}

/// With less address space than the plan needs, a run is refused before it writes anything, and the message says what would fit.
#[test]
#[cfg(target_os = "linux")]
fn train_refuses_what_does_not_fit() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(2000, 1, Some(30))));
    place.model("bert", &wide_bert());
    let sets = ["model.path=./bert", "train.batch=2000", "train.epochs=1"];
    let planned = plan(&place, &sets, &[]);
    assert!(bytes(&planned, "process_bytes") > 2048.0 * MIB, "{planned}");
    // 1.5 GiB of addresses, of which the program and its threads map a part
    let limited = |more: &[&str]| {
        let mut command = place.command(&[]);
        let program = command.get_program().to_owned();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "ulimit -v 1572864 && exec \"$0\" \"$@\""]).arg(program);
        shell.args(["train", "recipe.toml", "--threads", "2"]).args(sets.iter().flat_map(|s| ["--set", s])).args(more);
        shell.current_dir(place.path(".")).stdin(std::process::Stdio::null());
        shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command = shell;
        finish(&mut command)
    };
    let ran = limited(&[]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    assert!(ran.err.contains("error: the run needs ") && ran.err.contains("address space, ulimit -v"), "{}", ran.err);
    assert!(ran.err.contains("--ignore-memory"), "{}", ran.err);
    assert_eq!(place.names("run"), [""; 0], "a refused run leaves nothing behind");
    // its advice starts
    let advice = ran
        .err
        .lines()
        .find(|line| line.trim_start().starts_with("largest batch"))
        .unwrap_or_else(|| panic!("{}", ran.err));
    let set = advice.split_once("--set ").unwrap().1;
    let ran = limited(&["--set", set, "--set", "train.steps=1"]);
    assert_eq!(ran.code, Some(0), "{set}: {}", ran.err);
    // a refusal can be overruled; the system then does what it does
    let ran = limited(&["--ignore-memory", "--set", "output=other"]);
    assert_ne!(ran.code, Some(0));
    assert!(!ran.err.contains("error: the run needs "), "{}", ran.err);
    assert!(!place.names("other").is_empty());
}

#[test]
fn a_plan_needs_no_weights() {
    let place = Place::new();
    let before = plan(&place, &[], &[]);
    std::fs::remove_file(place.path("model/model.safetensors")).unwrap();
    let after = plan(&place, &[], &[]);
    assert_eq!((&before["peak_bytes"], &before["sites"]), (&after["peak_bytes"], &after["sites"]));
    let train = place.run(&["train", "recipe.toml"]);
    assert!(train.code == Some(1) && train.err.contains("expected model.safetensors, found"), "{}", train.err);
}

#[test]
fn bench_plans_without_running() {
    let place = Place::new();
    let base = ["bench", "--model-config", "model/config.json", "--seq", "16", "--json"];
    let bench = |more: &[&str]| place.ok_json(&[&base[..], more].concat());
    let planned = bench(&["--plan", "--batch", "9", "--lengths", "uniform"]);
    let run = bench(&["--batch", "9", "--lengths", "uniform", "--steps", "1"]);
    assert_eq!((&planned["peak_bytes"], &planned["batch"]), (&run["peak_bytes"], &json!(9)));
    assert_eq!((&planned["tokens"], &planned["step_seconds_min"]), (&run["tokens"], &Value::Null));
    // the largest batch, found and run
    let memory = format!("{}", bytes(&planned, "process_bytes") as u64 + (4 << 20));
    let largest = bench(&["--memory", &memory, "--steps", "1"]);
    let batch = largest["batch"].as_u64().unwrap();
    assert!(batch > 9 && largest["planned_process_bytes"].as_u64().unwrap() <= memory.parse().unwrap(), "{largest}");
    let more = bench(&["--plan", "--batch", &(batch + batch / 4).to_string()]);
    assert!(bytes(&more, "process_bytes") > memory.parse().unwrap(), "{more}");
    let text = place.ok(&["bench", "--model-config", "model/config.json", "--seq", "16", "--plan"]);
    assert!(text.starts_with("batch         32 sequences\nlargest step  512 tokens\n"), "{text}");
    let ran = place.run(&[&base[..], &["--memory", "1MiB"]].concat());
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("--memory: expected at least ") && ran.err.contains("found 1.00 MiB"), "{}", ran.err);
    let ran = place.run(&[&base[..], &["--memory", "1GiB", "--batch", "3"]].concat());
    assert_eq!(ran.code, Some(2), "one or the other: {}", ran.err);
}
