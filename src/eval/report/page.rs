//! A page of HTML, well-formed as XML too.

use std::fmt::Write;

use super::chart::swatch;
use crate::eval::markup::escaped;

/// Colours of lines, of light and of dark paper: told apart by most kinds of colour vision, and in contrast to the paper.
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#24292f;--faint:#57606a;--rule:#d8dee4;--cell:#eef1f4;\
--c0:#0969b8;--c1:#c4560a;--c2:#11805a;--c3:#a8327e;--c4:#7a5af5;--c5:#8a6d00;--c6:#c22f3d;--c7:#4a5560}\
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#d6dde5;--faint:#8b949e;--rule:#30363d;--cell:#1c222a;\
--c0:#6cb6ff;--c1:#ffa657;--c2:#56d4a0;--c3:#f0a0d8;--c4:#b8a5ff;--c5:#e3c04a;--c6:#ff8b8b;--c7:#aeb8c2}}\
body{font:15px/1.5 system-ui,'Segoe UI',Helvetica,Arial,sans-serif;color:var(--ink);background:var(--paper);\
max-width:1340px;margin:0 auto;padding:24px}\
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 4px;border-bottom:1px solid var(--rule);padding-bottom:4px}\
p{max-width:80ch;margin:6px 0;color:var(--faint)}.charts{display:flex;flex-wrap:wrap;gap:12px 20px;align-items:flex-start}\
figure{margin:8px 0}figcaption{color:var(--faint);font-size:13px}\
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;padding:0;margin:8px 0 0}\
.legend li{display:flex;align-items:center;gap:6px}svg{max-width:100%;height:auto}\
svg text{font-size:12px;fill:var(--faint)}svg .name{font-size:14px;font-weight:600;fill:var(--ink)}\
.grid{stroke:var(--rule);stroke-width:1;fill:none}.line{fill:none;stroke-width:2;stroke:var(--c)}.point{fill:var(--c)}\
.dashed{stroke-dasharray:5 4}.level{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:2 3;fill:none}\
.mark{stroke:var(--ink);stroke-width:2.2;fill:none}\
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}\
.s7{--c:var(--c7)}.never{fill:var(--cell)}.always{fill:var(--c7)}.some{fill:var(--c0)}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:8px 0}\
th,td{text-align:right;padding:3px 9px;border-bottom:1px solid var(--rule);white-space:nowrap}th{color:var(--faint);font-weight:600}\
th:first-child,td:first-child{text-align:left}summary{cursor:pointer;color:var(--faint);margin:8px 0}";

/// A page in the making. Text is escaped here; plots come as markup.
#[derive(Debug)]
pub(super) struct Page {
    out: String,
}

impl Page {
    pub(super) fn new(title: &str) -> Self {
        let title = escaped(title);
        Page {
            out: format!(
                "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
                 <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            ),
        }
    }

    pub(super) fn heading(&mut self, text: &str) {
        let _ = writeln!(self.out, "<h2>{}</h2>", escaped(text));
    }

    pub(super) fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.out, "<p>{}</p>", escaped(text));
    }

    /// What the lines of the charts below are: name, style, and whether dashed.
    pub(super) fn legend<'a>(&mut self, lines: impl Iterator<Item = (&'a str, usize, bool)>) {
        self.out.push_str("<ul class=\"legend\">\n");
        for (name, style, dashed) in lines {
            let _ = writeln!(self.out, "<li>{}{}</li>", swatch(style, dashed), escaped(name));
        }
        self.out.push_str("</ul>\n");
    }

    /// Pictures side by side, each with a text below that may be empty.
    pub(super) fn pictures(&mut self, pictures: &[(String, String)]) {
        self.out.push_str("<div class=\"charts\">\n");
        for (picture, caption) in pictures {
            let _ = write!(self.out, "<figure>{picture}");
            if !caption.is_empty() {
                let _ = write!(self.out, "<figcaption>{}</figcaption>", escaped(caption));
            }
            self.out.push_str("</figure>\n");
        }
        self.out.push_str("</div>\n");
    }

    pub(super) fn table(&mut self, head: &[String], rows: &[Vec<String>]) {
        self.out.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
        head.iter().for_each(|cell| self.cell("th", cell));
        self.out.push_str("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.out.push_str("<tr>");
            row.iter().for_each(|cell| self.cell("td", cell));
            self.out.push_str("</tr>\n");
        }
        self.out.push_str("</tbody>\n</table></div>\n");
    }

    fn cell(&mut self, tag: &str, text: &str) {
        let _ = write!(self.out, "<{tag}>{}</{tag}>", escaped(text));
    }

    /// What `write` writes, folded away behind a line.
    pub(super) fn folded(&mut self, summary: &str, write: impl FnOnce(&mut Page)) {
        let _ = writeln!(self.out, "<details>\n<summary>{}</summary>", escaped(summary));
        write(self);
        self.out.push_str("</details>\n");
    }

    pub(super) fn finish(mut self) -> String {
        self.out.push_str("</body>\n</html>\n");
        self.out
    }
}
