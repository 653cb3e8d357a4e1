//! Markup in which a value cannot become an element: what is written as it is comes from this program's text,
//! and all else is escaped.

use std::fmt::Display;

/// HTML, or SVG inside of it.
#[derive(Debug, Default)]
pub(super) struct Markup(String);

impl Markup {
    /// Appends markup of this program's own.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Appends a value, for an element's text or an attribute in double quotes.
    pub(super) fn text(&mut self, value: impl Display) -> &mut Self {
        for letter in value.to_string().chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(' '),
                // Others are no characters of HTML, and what turns the direction of writing hides text.
                letter if letter.is_control() || is_directional(letter) => self.0.push('\u{fffd}'),
                letter => self.0.push(letter),
            }
        }
        self
    }

    /// Appends what was made the same way.
    pub(super) fn with(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }

    /// Appends a row of a table: a head, and cells.
    pub(super) fn row(&mut self, head: impl Display, cells: &[String]) -> &mut Self {
        self.raw("<tr><th scope=\"row\">").text(head).raw("</th>");
        for cell in cells {
            self.raw("<td>").text(cell).raw("</td>");
        }
        self.raw("</tr>\n")
    }

    /// Appends the row of heads.
    pub(super) fn heads(&mut self, heads: &[&'static str]) -> &mut Self {
        self.raw("<thead><tr>");
        for head in heads {
            self.raw("<th scope=\"col\">").raw(head).raw("</th>");
        }
        self.raw("</tr></thead>\n")
    }

    /// Returns the text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Unicode's characters that embed, override or isolate a direction of writing.
fn is_directional(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_becomes_markup() {
        let mut markup = Markup::default();
        markup.text("<script>\"'&\u{1b}\u{202e}\n</script>");
        assert_eq!(
            markup.finish(),
            "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd} &lt;/script&gt;"
        );
    }
}
