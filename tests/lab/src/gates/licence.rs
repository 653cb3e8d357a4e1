//! Licence expressions (SPDX, and the older form with a slash for "or").

/// Says whether `expression` can be satisfied with licences for which `allows` is true.
///
/// # Errors
/// What is wrong with an expression that cannot be read.
pub(crate) fn is_satisfied(expression: &str, allows: &dyn Fn(&str) -> bool) -> Result<bool, String> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader {
        words: &words,
        allows,
    };
    let satisfied = reader.any()?;
    match reader.words {
        [] => Ok(satisfied),
        [word, ..] => Err(format!("`{word}` where the expression `{expression}` should end")),
    }
}

/// Reads an expression from its front.
struct Reader<'a> {
    words: &'a [&'a str],
    allows: &'a dyn Fn(&str) -> bool,
}

impl<'a> Reader<'a> {
    /// Takes the next word if it is `word`.
    fn takes(&mut self, word: &str) -> bool {
        match self.words {
            [first, rest @ ..] if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    /// Takes the next word, whatever it is.
    fn word(&mut self) -> Result<&'a str, String> {
        let [first, rest @ ..] = self.words else {
            return Err("the expression ends where a licence should be".to_owned());
        };
        self.words = rest;
        Ok(first)
    }

    /// Reads `A OR B OR ...`.
    fn any(&mut self) -> Result<bool, String> {
        let mut satisfied = self.all()?;
        while self.takes("OR") {
            satisfied |= self.all()?;
        }
        Ok(satisfied)
    }

    /// Reads `A AND B AND ...`.
    fn all(&mut self) -> Result<bool, String> {
        let mut satisfied = self.one()?;
        while self.takes("AND") {
            satisfied &= self.one()?;
        }
        Ok(satisfied)
    }

    /// Reads a licence, with its exception where it has one, or an expression in parentheses.
    fn one(&mut self) -> Result<bool, String> {
        if self.takes("(") {
            let satisfied = self.any()?;
            return if self.takes(")") {
                Ok(satisfied)
            } else {
                Err("a parenthesis is not closed".to_owned())
            };
        }
        let licence = self.word()?;
        if self.takes("WITH") {
            let exception = self.word()?;
            return Ok((self.allows)(&format!("{licence} WITH {exception}")));
        }
        Ok((self.allows)(licence))
    }
}

#[cfg(test)]
mod tests {
    use super::is_satisfied;

    #[test]
    fn expressions_are_read_as_spdx_has_them() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"];
        for (expression, expected) in [
            ("MIT", Ok(true)),
            ("Apache-2.0", Ok(false)),
            ("MIT/Apache-2.0", Ok(true)),
            ("Apache-2.0 OR MIT", Ok(true)),
            ("Apache-2.0 AND MIT", Ok(false)),
            ("ISC AND MIT", Ok(true)),
            ("Apache-2.0 AND ISC OR MIT", Ok(true)),
            ("Apache-2.0 AND (ISC OR MIT)", Ok(false)),
            ("(MIT OR Apache-2.0) AND ISC", Ok(true)),
            ("Apache-2.0 WITH LLVM-exception", Ok(true)),
        ] {
            assert_eq!(
                is_satisfied(expression, &|licence| allowed.contains(&licence)),
                expected,
                "{expression}"
            );
        }
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for expression in ["", "MIT OR", "(MIT", "MIT ISC", "MIT WITH"] {
            assert!(is_satisfied(expression, &|_| true).is_err(), "{expression}");
        }
    }
}
