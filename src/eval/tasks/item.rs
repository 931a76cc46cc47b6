//! A question as a model sees it.

/// What stands between a prompt and what continues it.
const DELIMITER: &str = " ";

/// What stands behind an example in front of a question.
const BETWEEN_SHOTS: &str = "\n\n";

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The question.
    pub prompt: Prompt,
    /// Index of the right choice.
    pub gold: usize,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Which of several texts continues a context?
    Choices {
        /// The context.
        context: String,
        /// At least one.
        choices: Vec<String>,
    },
    /// Which of several contexts does a text continue? (*Partial evaluation*: only what is the same is scored.)
    Contexts {
        /// At least one.
        contexts: Vec<String>,
        /// What continues them.
        continuation: String,
    },
}

impl Item {
    /// What is scored for each choice, as `(context, continuation)`, behind the examples in `shots`.
    pub fn requests(&self, shots: &str) -> Vec<(String, String)> {
        let continuation = |text: &str| format!("{DELIMITER}{text}");
        match &self.prompt {
            Prompt::Choices { context, choices } => {
                choices.iter().map(|choice| (format!("{shots}{context}"), continuation(choice))).collect()
            }
            Prompt::Contexts { contexts, continuation: text } => {
                contexts.iter().map(|context| (format!("{shots}{context}"), continuation(text))).collect()
            }
        }
    }

    /// The choices, by whose length a normalised likelihood is divided.
    pub fn choices(&self) -> &[String] {
        match &self.prompt {
            Prompt::Choices { choices: texts, .. } | Prompt::Contexts { contexts: texts, .. } => texts,
        }
    }

    /// The item with its answer, as an example in front of another.
    pub fn example(&self) -> String {
        let (question, answer) = match &self.prompt {
            Prompt::Choices { context, choices } => (context, &choices[self.gold]),
            Prompt::Contexts { contexts, continuation } => (&contexts[self.gold], continuation),
        };
        format!("{question}{DELIMITER}{answer}{BETWEEN_SHOTS}")
    }
}
