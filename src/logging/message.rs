//! A message for journald: the copy of an event, which another thread sends.

use std::fmt;

use tracing::field::{Field, Value, Visit};
use tracing::{Dispatch, Event, Metadata};

use super::cut;
use super::queue::Weight;

impl Weight for JournalMessage {
    fn weight(&self) -> usize {
        let values = self.values.iter().flatten();
        size_of::<JournalMessage>() + values.map(|value| 64 + value.len()).sum::<usize>()
    }
}

/// The field with one of [`crate::events`]. A message that has it is more notable than others of
/// its level.
pub(super) const MESSAGE_ID: &str = "message_id";

/// A copy of an event.
#[derive(Debug)]
pub(super) struct JournalMessage {
    metadata: &'static Metadata<'static>,
    /// The values of the metadata's fields, in their order.
    values: Vec<Option<String>>,
}

impl JournalMessage {
    /// Copies an event with all its fields.
    pub(super) fn new(event: &Event<'_>) -> JournalMessage {
        let metadata = event.metadata();
        let mut message = JournalMessage {
            metadata,
            values: vec![None; metadata.fields().len()],
        };
        event.record(&mut message);
        message
    }

    fn longest(&self) -> usize {
        cut::longest(self.metadata.level())
    }

    /// Returns true for one of [`crate::events`].
    pub(super) fn is_notable(&self) -> bool {
        self.metadata.fields().field(MESSAGE_ID).is_some()
    }

    /// Makes an event of the copy again, for a subscriber that sends it on.
    pub(super) fn send(mut self, to: &Dispatch) {
        let text = self.text();
        let fields = self.metadata.fields();
        if let Some(message) = fields.field("message") {
            self.values[message.index()] = Some(text);
        }
        let values = self.values.iter().map(Option::as_ref);
        let values: Vec<_> = values
            .map(|value| value.map(|value| value as &dyn Value))
            .collect();
        to.event(&Event::new(self.metadata, &fields.value_set_all(&values)));
    }

    /// The constant words, the fields, and the error at the end, because that may have several
    /// lines. A person reads only this most of the time.
    fn text(&self) -> String {
        let (mut words, mut fields, mut error) = (String::new(), String::new(), String::new());
        for (field, value) in self.metadata.fields().iter().zip(&self.values) {
            match (field.name(), value) {
                (_, None) | (MESSAGE_ID, _) => {}
                ("message", Some(value)) => words.clone_from(value),
                ("error", Some(value)) => error = format!(": {value}"),
                (name, Some(value)) => fields += &format!(" {name}={value}"),
            }
        }
        words + &fields + &error
    }
}

impl Visit for JournalMessage {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A field without a value, like the service of a job for all of them, only confuses those
        // who search.
        let value = cut::cut(value, self.longest());
        self.values[field.index()] = (!value.is_empty()).then(|| value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.values[field.index()] = Some(cut::format(value, self.longest()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::Subscriber;
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    #[derive(Default, Clone)]
    struct Copies(Arc<Mutex<Vec<JournalMessage>>>);

    impl<S: Subscriber> Layer<S> for Copies {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(JournalMessage::new(event));
        }
    }

    #[test]
    fn people_read_the_words_then_the_fields_then_the_error() {
        let copies = Copies::default();
        let subscriber = Registry::default().with(copies.clone());
        tracing::subscriber::with_default(subscriber, || {
            let error = "exited with status 3\n  stderr: no such table";
            tracing::error!(message_id = "1", error, job = "", service = %"shop", "no luck");
            tracing::info!(count = 3, "done");
        });
        let copies = copies.0.lock().unwrap();
        let [failed, done] = &copies[..] else {
            panic!("{copies:?}")
        };
        assert_eq!(
            failed.text(),
            "no luck service=shop: exited with status 3\n  stderr: no such table"
        );
        assert!(failed.is_notable());
        assert_eq!(done.text(), "done count=3");
        assert!(!done.is_notable());
    }
}
