//! Chat templates against `transformers` (`tests/golden/make_chat.py`), and what counts of their renderings.

use std::path::Path;

use colrow_train::chat::{ChatTemplate, Conversation, Keys, Moment, TrainOn, Variables};
use colrow_train::data::{self, Split};
use colrow_train::objective::Conversations;
use serde_json::Value;

const SPECIAL: [&str; 6] = ["<s>", "</s>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|im_start|>"];

struct Golden {
    folder: std::path::PathBuf,
    written: Value,
}

impl Golden {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat");
        let written = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        Self { folder, written }
    }

    fn template(&self, name: &str) -> ChatTemplate {
        let source = std::fs::read_to_string(self.folder.join(name)).unwrap();
        let variables: Variables = serde_json::from_value(self.written["variables"].clone()).unwrap();
        ChatTemplate::new(&source, variables, Moment::of_day("2026-11-28").unwrap()).unwrap()
    }

    fn messages(&self, name: &str) -> &Value {
        &self.written["conversations"][name]["messages"]
    }

    fn conversation(&self, name: &str) -> Conversation {
        let tools = self.written["conversations"][name].get("tools").cloned().unwrap_or(Value::Null);
        Conversation::of(self.messages(name).clone(), &Keys::default()).unwrap().with_tools(tools).unwrap()
    }

    fn counts(&self, template: &str, name: &str, train_on: TrainOn) -> Result<Vec<String>, String> {
        let special = SPECIAL.map(str::to_owned);
        let rendered = self.conversation(name).render(&self.template(template), train_on, &special);
        let rendered = rendered.map_err(|e| e.to_string())?;
        Ok(rendered.counts.iter().map(|range| rendered.text[range.clone()].to_owned()).collect())
    }
}

#[test]
fn renderings_are_those_of_transformers() {
    let golden = Golden::read();
    let (mut same, mut refused) = (0, 0);
    for case in golden.written["cases"].as_array().unwrap() {
        let (file, name) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let template = golden.template(file);
        let conversation = golden.conversation(name);
        let prompt = golden.written["conversations"][name]["add_generation_prompt"] == true;
        let text = template.render(conversation.messages(), conversation.tools(), prompt);
        match (case["text"].as_str(), case["refused"].as_str()) {
            (Some(expected), _) => {
                assert_eq!(text.unwrap_or_else(|e| panic!("{file}, {name}: {e}")), expected, "{file}, {name}");
                same += 1;
            }
            (None, said) => {
                let error = text.unwrap_err().to_string();
                let said = said.unwrap();
                let own = format!("the chat template refuses the conversation: {said}");
                // or what Python says of a value that is not there
                assert!(
                    error == own || said.contains("has no attribute") && error.contains("fails"),
                    "{error}; {said}"
                );
                refused += 1;
            }
        }
        if let Some(generated) = case["generated"].as_array() {
            let expected: Vec<&str> = generated.iter().map(|text| text.as_str().unwrap()).collect();
            assert_eq!(golden.counts(file, name, TrainOn::Assistant).unwrap(), expected, "{file}, {name}");
        }
    }
    assert_eq!((same, refused), (58, 5));
}

/// What the model writes: from where the generation prompt ends, thoughts and calls too, to the special token behind it.
#[test]
fn turns_are_found_in_the_rendering() {
    let golden = Golden::read();
    let one = |template: &str, name, expected: &[&str]| {
        let counts = golden.counts(template, name, TrainOn::Assistant).unwrap_or_else(|e| panic!("{template}: {e}"));
        assert_eq!(counts, expected, "{template}, {name}");
    };
    one("llama2.jinja", "more", &[" Because. </s>", " It is so. </s>"]);
    one("llama3.jinja", "more", &["Because.<|eot_id|>", "It is so.<|eot_id|>"]);
    one("mistral.jinja", "more", &[" Because.</s>", " It is so.</s>"]);
    one("qwen2.jinja", "more", &["  Because.\n<|im_end|>", "It is so.<|im_end|>"]);
    one("smollm2.jinja", "more", &["  Because.\n<|im_end|>", "It is so.<|im_end|>"]);
    one(
        "smollm2.jinja",
        "thought",
        &["<think>\nHm.\n</think>\n\nTwo.<|im_end|>", "<think>\nWell.\n</think>\n\nFour.<|im_end|>"],
    );
    // thoughts are cut out of the first turn, and set into the last
    one("qwen3.jinja", "more", &["  Because.\n<|im_end|>", "<think>\n\n</think>\n\nIt is so.<|im_end|>"]);
    for name in ["thought", "reasoned"] {
        one("qwen3.jinja", name, &["Two.<|im_end|>", "<think>\nWell.\n</think>\n\nFour.<|im_end|>"]);
    }
    // the generation prompt is no prefix of the whole
    one("thinks.jinja", "thought", &["Two.<|end|>", "Four.<|end|>"]);
    one("qwen2.jinja", "answer-first", &["  Because.\n<|im_end|>", "  Because.\n<|im_end|>"]);
    let call = r#"{"name": "weather", "arguments": {"place": "Köln", "day": 1}}"#;
    let tagged = format!("<tool_call>\n{call}\n</tool_call><|im_end|>");
    one("qwen2.jinja", "calls", &[&tagged, "Yes, rain.<|im_end|>"]);
    one("qwen3.jinja", "calls", &[&tagged, "<think>\n\n</think>\n\nYes, rain.<|im_end|>"]);
    let listed = format!("[TOOL_CALLS] [{}, \"id\": \"abcdefghi\"}}]</s>", &call[..call.len() - 1]);
    one("mistral.jinja", "calls", &[&listed, " Yes, rain.</s>"]);
    let other = call.replace("arguments", "parameters") + "<|eot_id|>";
    one("llama3.jinja", "calls", &[&other, "Yes, rain.<|eot_id|>"]);
}

/// Without a generation prompt the model begins its turns itself, and learns to.
#[test]
fn a_turn_begins_where_the_generation_prompt_ends() {
    let golden = Golden::read();
    let counts = |source: &str| {
        let template = ChatTemplate::new(source, Variables::new(), Moment::now()).unwrap();
        let special = ["</s>".to_owned()];
        let rendered = golden.conversation("hello").render(&template, TrainOn::Assistant, &special).unwrap();
        rendered.text[rendered.counts[0].clone()].to_owned()
    };
    let turns = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}</s>{% endfor %}";
    assert_eq!(counts(turns), "assistant: Because.</s>");
    assert_eq!(counts(&format!("{turns}{{% if add_generation_prompt %}}assistant: {{% endif %}}")), "Because.</s>");
    // what the turn has not does not count against it
    assert_eq!(
        counts(&format!("{turns}{{% if add_generation_prompt %}}assistant: <think>{{% endif %}}")),
        "Because.</s>"
    );
}

#[test]
fn what_counts_is_chosen() {
    let golden = Golden::read();
    let counts = |train_on| golden.counts("smollm2.jinja", "more", train_on).unwrap();
    assert_eq!(counts(TrainOn::Last), ["It is so.<|im_end|>"]);
    let all = counts(TrainOn::All);
    assert!(
        all.len() == 1 && all[0].starts_with("<|im_start|>system") && all[0].ends_with("so.<|im_end|>\n"),
        "{all:?}"
    );
    let special = SPECIAL.map(str::to_owned);
    let template = golden.template("smollm2.jinja");
    let list =
        |range: std::ops::Range<usize>| Value::Array(golden.messages("more").as_array().unwrap()[range].to_vec());
    let completed = Conversation::completed(list(0..4), list(4..5), &Keys::default()).unwrap();
    let rendered = completed.render(&template, TrainOn::Completion, &special).unwrap();
    let counts: Vec<&str> = rendered.counts.iter().map(|range| &rendered.text[range.clone()]).collect();
    assert_eq!((counts, rendered.open), (vec!["It is so.<|im_end|>"], false));
    // where no token is special, none ends a turn
    let rendered = golden.conversation("more").render(&template, TrainOn::Assistant, &[]).unwrap();
    let counts: Vec<&str> = rendered.counts.iter().map(|range| &rendered.text[range.clone()]).collect();
    assert_eq!((counts, rendered.open), (vec!["  Because.\n", "It is so."], true));
    let marked = |train_on| golden.counts("smollm3.jinja", "thought", train_on).unwrap();
    assert_eq!(marked(TrainOn::Last), ["<think>\nWell.\n</think>\n\nFour.<|im_end|>\n"]);
    assert_eq!(marked(TrainOn::Assistant).len(), 2);
}

/// What a template writes in place of a turn, or writes otherwise, is not taken for it.
#[test]
fn a_turn_that_is_not_in_the_rendering_is_refused() {
    let special = SPECIAL.map(str::to_owned);
    let golden = Golden::read();
    let render = |source: &str, train_on| {
        let template = ChatTemplate::new(source, Variables::new(), Moment::now()).unwrap();
        golden.conversation("more").render(&template, train_on, &special).map_err(|e| e.to_string())
    };
    let refused = |source: &str| {
        let message = render(source, TrainOn::Assistant).unwrap_err();
        assert!(message.starts_with("message 3 (assistant) cannot be found"), "{source}: {message}");
        assert!(message.contains("data.train_on = \"all\""), "{message}");
        assert!(render(source, TrainOn::All).is_ok());
    };
    refused("{% for m in messages %}{{ m.role }}: {{ m.content if m.role == 'user' else '...' }}\n{% endfor %}");
    // the length of all stands at the end
    refused(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | map(attribute='content') | join('') | length }}",
    );
    // in other letters, but in its place
    let upper = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}</s>{% endfor %}";
    let rendered = render(upper, TrainOn::Assistant).unwrap();
    assert_eq!(&rendered.text[rendered.counts[1].clone()], "IT IS SO.</s>");
}

#[test]
fn a_folder_has_its_template_in_a_file_or_in_the_tokenizers_settings() {
    let folder = tempfile::tempdir().unwrap();
    let now = Moment::of_day("2026-11-28").unwrap();
    let open = || ChatTemplate::open(folder.path(), Variables::new(), now);
    let user = [serde_json::json!({"role": "user", "content": "Hi"})];
    let tools = serde_json::json!([{}]);
    let error = open().unwrap_err().to_string();
    assert!(
        error.contains(
            "expected a chat template, found neither chat_template.jinja nor chat_template in tokenizer_config.json"
        ),
        "{error}"
    );
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": "a {{ messages[0].content }} {{ strftime_now('%Y') }}"}"#);
    let template = open().unwrap();
    assert!(!template.is_dated());
    assert_eq!(template.render(&user, None, false).unwrap(), "a Hi 2026");
    assert!(template.is_dated());
    let named = r#"[{"name": "default", "template": "b"}, {"name": "tool_use", "template": "c"}, {"name": "rag", "template": "{{"}]"#;
    write("tokenizer_config.json", &format!("{{\"chat_template\": {named}}}"));
    let template = open().unwrap();
    assert_eq!(template.render(&user, None, false).unwrap(), "b");
    assert_eq!(template.render(&user, Some(&tools), false).unwrap(), "c");
    write("chat_template.jinja", "d\n{% if add_generation_prompt %}e{% endif %}\n");
    assert_eq!(open().unwrap().render(&user, None, true).unwrap(), "d\ne");
    write("chat_template.jinja", "line\n{% if %}");
    let error = open().unwrap_err().to_string();
    assert!(
        error.starts_with("the chat template does not parse in its line 2: ") && error.contains("chat_template.jinja"),
        "{error}"
    );
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    for wrong in ["3", r#"[{"name": "rag", "template": "x"}]"#, r#"["x"]"#] {
        write("tokenizer_config.json", &format!("{{\"chat_template\": {wrong}}}"));
        assert!(open().unwrap_err().to_string().starts_with("chat_template: expected"), "{wrong}");
    }
}

/// A template may be anybody's.
#[test]
fn a_template_without_end_ends() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, Variables::new(), Moment::now()).unwrap();
    let error = template.render(&[], None, false).unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
}

/// One reader's records are another's.
#[test]
fn records_are_the_same_in_every_format() {
    let golden = Golden::read();
    let read = |name: &str| {
        let keys = Keys::default();
        let special = SPECIAL.map(str::to_owned).to_vec();
        let template = Ok(golden.template("qwen2.jinja"));
        let reading = Conversations { keys: &keys, template, train_on: None, special };
        data::read(&golden.folder.join(name), &reading, Split::Train).unwrap()
    };
    let [lines, array, parquet] = ["records.jsonl", "records.json", "records.parquet"].map(read);
    assert_eq!(lines.rows.len(), 3);
    for i in 0..3 {
        let (a, b, c) = (&lines.rows[i], &array.rows[i], &parquet.rows[i]);
        assert_eq!((&a.text, &a.counted), (&b.text, &b.counted));
        assert_eq!((&a.text, &a.counted), (&c.text, &c.counted));
    }
    assert!(lines.rows[1].text.contains("<tools>\n{\"type\": \"function\""), "{}", lines.rows[1].text);
}
