//! Examples in front of a question.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Item;
use crate::Result;
use crate::eval::EvalError;

/// Draws examples, others for every question.
#[derive(Clone, Debug)]
pub struct Shots {
    /// With their answers.
    examples: Vec<String>,
    count: usize,
    rng: ChaCha8Rng,
}

impl Shots {
    /// No examples.
    pub fn none() -> Self {
        Shots { examples: Vec::new(), count: 0, rng: ChaCha8Rng::seed_from_u64(0) }
    }

    /// `count` examples among `items`, which should be of another split than the questions.
    ///
    /// # Errors
    /// [`EvalError::TooFewShots`] if there are fewer.
    pub fn new(items: &[Item], count: usize, seed: u64) -> Result<Self> {
        if items.len() < count {
            return Err(EvalError::TooFewShots { wanted: count, found: items.len() }.into());
        }
        let examples = items.iter().map(Item::example).collect();
        Ok(Shots { examples, count, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The examples of the next question, each of them once.
    pub fn draw(&mut self) -> String {
        let mut text = String::new();
        for taken in 0..self.count {
            // A uniform number below the examples left; its bias, at most their number / 2^32, could not be noticed.
            let left = self.examples.len() - taken;
            let at = taken + ((u64::from(self.rng.next_u32()) * left as u64) >> 32) as usize;
            self.examples.swap(taken, at);
            text += &self.examples[taken];
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Prompt;
    use super::*;

    fn items(n: usize) -> Vec<Item> {
        let prompt = |i| Prompt::Choices { context: format!("{i}"), choices: vec!["no".to_owned(), "yes".to_owned()] };
        (0..n).map(|i| Item { prompt: prompt(i), gold: 1 }).collect()
    }

    #[test]
    fn examples_are_drawn_without_repetition() {
        let mut shots = Shots::new(&items(5), 3, 7).unwrap();
        let draws: Vec<String> = (0..20).map(|_| shots.draw()).collect();
        for draw in &draws {
            let mut examples: Vec<&str> = draw.strip_suffix("\n\n").unwrap().split("\n\n").collect();
            examples.sort_unstable();
            examples.dedup();
            assert_eq!(examples.len(), 3, "{draw}");
            assert!(examples.iter().all(|example| example.ends_with(" yes")));
        }
        assert!(draws.iter().any(|draw| draw != &draws[0]));
        let mut again = Shots::new(&items(5), 3, 7).unwrap();
        assert_eq!(draws, (0..20).map(|_| again.draw()).collect::<Vec<_>>());
        assert_ne!(draws[0], Shots::new(&items(5), 3, 8).unwrap().draw());
        assert_eq!(Shots::none().draw(), "");
    }

    #[test]
    fn there_must_be_enough() {
        assert_eq!(
            Shots::new(&items(2), 3, 0).unwrap_err().to_string(),
            "3 examples are wanted in front of every question, but there are records for 2; use fewer shots or a longer file"
        );
    }
}
