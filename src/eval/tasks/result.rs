//! From likelihoods to accuracies.

use super::{Item, TaskFormat};
use crate::eval::Likelihood;

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The most likely choice is the right one.
    pub right: bool,
    /// The choice that is most likely per character is.
    pub right_per_character: bool,
    /// The choice that is most likely per byte of UTF-8 is.
    pub right_per_byte: bool,
}

impl Answer {
    /// Of equally likely choices the first counts.
    pub fn of(item: &Item, likelihoods: &[Likelihood]) -> Self {
        let is_right = |length: &dyn Fn(&str) -> usize| {
            let sizes = item.choices().iter().map(|choice| length(choice) as f64);
            let values = likelihoods.iter().zip(sizes).map(|(found, size)| found.log_likelihood / size);
            let best = values.enumerate().fold(None, |best: Option<(usize, f64)>, (index, value)| match best {
                Some((_, most)) if most >= value => best,
                _ => Some((index, value)),
            });
            best.is_some_and(|(index, _)| index == item.gold)
        };
        Answer {
            right: is_right(&|_| 1),
            right_per_character: is_right(&|choice| choice.chars().count()),
            right_per_byte: is_right(&str::len),
        }
    }
}

/// Accuracy on one task.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: &'static str,
    /// Questions answered.
    pub records: usize,
    /// Choices scored.
    pub choices: usize,
    /// Share of the questions whose most likely choice is the right one.
    pub acc: f64,
    /// Its standard error: sample standard deviation over the root of the number of questions. `None` for a single question.
    pub acc_stderr: Option<f64>,
    /// The same by likelihood per character of the choice; `None` where lm-evaluation-harness does not report it.
    pub acc_norm: Option<f64>,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
    /// The same by likelihood per byte of the choice in UTF-8; `None` as for `acc_norm`.
    pub acc_bytes: Option<f64>,
}

impl TaskResult {
    /// Of `likelihoods`, one list for each of `items`.
    pub fn of(task: &dyn TaskFormat, items: &[Item], likelihoods: &[Vec<Likelihood>]) -> Self {
        let answers: Vec<Answer> = items.iter().zip(likelihoods).map(|(item, found)| Answer::of(item, found)).collect();
        let share = |right: fn(&Answer) -> bool| {
            answers.iter().filter(|&answer| right(answer)).count() as f64 / answers.len() as f64
        };
        let stderr = |mean: f64| (answers.len() > 1).then(|| (mean * (1.0 - mean) / (answers.len() - 1) as f64).sqrt());
        let acc = share(|answer| answer.right);
        let acc_norm = task.normalizes().then(|| share(|answer| answer.right_per_character));
        TaskResult {
            task: task.name(),
            records: answers.len(),
            choices: likelihoods.iter().map(Vec::len).sum(),
            acc,
            acc_stderr: stderr(acc),
            acc_norm,
            acc_norm_stderr: acc_norm.and_then(stderr),
            acc_bytes: task.normalizes().then(|| share(|answer| answer.right_per_byte)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Prompt, task, tests::choices};
    use super::*;

    fn likelihoods(values: &[f64]) -> Vec<Likelihood> {
        values.iter().map(|&log_likelihood| Likelihood { log_likelihood, greedy: false, tokens: 1 }).collect()
    }

    #[test]
    fn choices_are_compared_as_a_whole_per_character_and_per_byte() {
        // Three characters, five bytes; two of each.
        let item = |gold| Item { prompt: choices("c", &["éaé", "ab"]), gold };
        let answer = |gold, values: &[f64]| {
            let Answer { right, right_per_character, right_per_byte } = Answer::of(&item(gold), &likelihoods(values));
            [right, right_per_character, right_per_byte]
        };
        assert_eq!(answer(0, &[-1.0, -2.0]), [true, true, true]);
        assert_eq!(answer(0, &[-4.0, -3.0]), [false, true, true]);
        assert_eq!(answer(0, &[-4.0, -2.0]), [false, false, true]);
        // Of equals the first.
        assert!(!answer(1, &[-1.0, -1.0])[0]);
        assert!(answer(0, &[-1.0, -1.0])[0]);
    }

    #[test]
    fn standard_error_is_that_of_a_sample() {
        let items: Vec<Item> = [0, 0, 1, 0].map(|gold| Item { prompt: choices("c", &["a", "b"]), gold }).to_vec();
        let found: Vec<_> = items.iter().map(|_| likelihoods(&[-1.0, -2.0])).collect();
        let result = TaskResult::of(task("piqa").unwrap(), &items, &found);
        assert_eq!((result.records, result.choices, result.acc, result.acc_norm), (4, 8, 0.75, Some(0.75)));
        // Deviations of one, one, nought, one from their mean, squared and summed: 0.75; over 3; its root over the root of 4.
        assert!((result.acc_stderr.unwrap() - (0.75f64 / 3.0).sqrt() / 2.0).abs() < 1e-15);
        let one = TaskResult::of(task("rte").unwrap(), &items[..1], &found[..1]);
        assert_eq!((one.acc, one.acc_stderr, one.acc_norm, one.acc_bytes), (1.0, None, None, None));
        let contexts = Prompt::Contexts { contexts: vec!["a".into(), "b".into()], continuation: "c".into() };
        assert_eq!(Item { prompt: contexts, gold: 0 }.choices(), ["a", "b"]);
    }
}
