//! Conversations as a model reads them: its chat template, what a record of data says, and what of the rendering counts in the loss.
//!
//! ```
//! use colrow_train::chat::{ChatTemplate, Conversation, Moment, TrainOn};
//! use serde_json::json;
//!
//! let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
//!     {% if add_generation_prompt %}<|assistant|>{% endif %}";
//! let template = ChatTemplate::new(source, Default::default(), Moment::now())?;
//! let messages = json!([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Why not?"}]);
//! let conversation = Conversation::new(messages)?;
//! let special = ["<|end|>".to_owned()];
//! let rendered = conversation.render(&template, TrainOn::Assistant, &special)?;
//! assert_eq!(rendered.text, "<|user|>Why?<|end|><|assistant|>Why not?<|end|>");
//! let counts: Vec<&str> = rendered.counts.iter().map(|range| &rendered.text[range.clone()]).collect();
//! assert_eq!(counts, ["Why not?<|end|>"]);
//! # Ok::<(), colrow_tensor::Error>(())
//! ```

mod conversation;
mod marks;
mod python;
mod spans;
mod template;

pub use conversation::{Conversation, Keys};
pub use python::Moment;
pub use spans::{Rendered, TrainOn};
pub use template::{ChatTemplate, Variables};
