#![no_main]
use colrow_train::chat::{ChatTemplate, Conversation, Keys, Moment, TrainOn};
use colrow_train::data::json;
use colrow_train::data::record::Reading;
use colrow_train::objective::{Conversations, PlainTexts};
use colrow_tensor::Error;
use libfuzzer_sys::fuzz_target;

/// As those of the Qwen family: calls, results, thoughts that are cut out of what is past.
const TEMPLATE: &str = include_str!("../../tests/golden/chat/qwen3.jinja");

fn template(source: &str) -> Result<ChatTemplate, Error> {
    ChatTemplate::new(source, Default::default(), Moment::of_day("2026-11-28").expect("a day"))
}

/// What counts lies in the text, in order.
fn check(text: &str, ranges: &[std::ops::Range<usize>]) {
    let mut end = 0;
    for range in ranges {
        assert!(range.start >= end && range.end > range.start && text.get(range.clone()).is_some(), "{ranges:?} of {text:?}");
        end = range.end;
    }
}

// Lines of records, or behind a line of `%%` a template and a line of messages.
fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let special = vec!["<|im_end|>".to_owned(), "</s>".to_owned()];
    if let Some((source, messages)) = text.strip_prefix("%%\n").and_then(|rest| rest.rsplit_once('\n')) {
        let (Ok(template), Ok(messages)) = (template(source), serde_json::from_str(messages)) else { return };
        let Ok(conversation) = Conversation::of(messages, &Keys::default()) else { return };
        for train_on in [TrainOn::Assistant, TrainOn::Last, TrainOn::All] {
            if let Ok(rendered) = conversation.render(&template, train_on, &special) {
                check(&rendered.text, &rendered.counts);
            }
        }
        return;
    }
    let keys = Keys::default();
    for train_on in [None, Some(TrainOn::Last), Some(TrainOn::All)] {
        let reading = Conversations { keys: &keys, template: template(TEMPLATE), train_on, special: special.clone() };
        for reading in [&reading as &dyn Reading, &PlainTexts { text: None }] {
            let Ok(examples) = json::json(text.as_bytes(), reading) else { continue };
            for example in &examples.rows {
                check(&example.text, &example.counted.as_ref().expect("said of each").ranges);
            }
        }
    }
});
