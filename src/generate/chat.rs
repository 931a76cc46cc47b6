//! A conversation as the prompt its model was trained on.
//!
//! A chat model has seen its conversations in one exact notation, with its own markers between turns. Each model ships
//! that notation as a template, in `chat_template.jinja` or in `tokenizer_config.json`; rendering anything else gives
//! noticeably worse answers. The rendered text already contains the special tokens: encode it with `add_special = false`.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::value::{Serde, Value};
use serde::{Deserialize, Serialize};

use super::template::{NAME, describe, environment, strftime_now};
use super::{GenerateError, TokenizerConfig};

const DEFAULT: &str = "default";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`; templates may know more.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// How a conversation is rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatOptions {
    /// End with the marker after which the model answers. Default: true.
    pub add_generation_prompt: bool,
    /// The time that templates with a date see, in seconds since 1970, UTC. `None`: the local time of the computer.
    pub unix_time: Option<i64>,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, unix_time: None, variables: BTreeMap::new() }
    }
}

/// A model's chat template, compiled.
///
/// ```
/// use shadowllm::generate::{ChatMessage, ChatOptions, ChatTemplate, TokenizerConfig};
/// let template = ChatTemplate::new(
///     "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}\
///      {% if add_generation_prompt %}<|assistant|>{% endif %}",
///     &TokenizerConfig { eos_token: Some("</s>".to_owned()), ..TokenizerConfig::default() },
/// )?;
/// let prompt = template.render(&[ChatMessage::user("Hello")], &ChatOptions::default())?;
/// assert_eq!(prompt, "<|user|>Hello</s><|assistant|>");
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, as variables.
    special_tokens: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Compiles a template. The special tokens of `config` are its variables `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`GenerateError::ChatTemplate`] for a syntax error.
    pub fn new(source: &str, config: &TokenizerConfig) -> Result<Self, GenerateError> {
        Ok(Self {
            environment: environment(source)?,
            special_tokens: config.special_tokens().map(|(role, text)| (role.to_owned(), Value::from(text))).collect(),
        })
    }

    /// Finds and compiles a model's template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, where
    /// a list is searched for `name` (`None`: `default`). `side_file` returns the content of a file of the model's
    /// directory, or `None` if there is no such file.
    ///
    /// # Errors
    /// Those of `side_file`; [`GenerateError::NoChatTemplate`], [`GenerateError::ChatTemplateName`],
    /// [`GenerateError::ChatTemplate`], and those of [`TokenizerConfig::from_json`].
    pub fn load<E: From<GenerateError>>(
        side_file: impl Fn(&str) -> Result<Option<Vec<u8>>, E>,
        name: Option<&str>,
    ) -> Result<Self, E> {
        let config = match side_file("tokenizer_config.json")? {
            Some(bytes) => TokenizerConfig::from_json(&bytes)?,
            None => TokenizerConfig::default(),
        };
        let wanted = name.unwrap_or(DEFAULT);
        if wanted == DEFAULT
            && let Some(bytes) = side_file("chat_template.jinja")?
        {
            let source = String::from_utf8(bytes).map_err(|error| GenerateError::ChatTemplate {
                line: None,
                reason: format!("chat_template.jinja is not UTF-8: {error}"),
            })?;
            return Ok(Self::new(&source, &config)?);
        }
        let templates = &config.chat_templates;
        if let Some((_, source)) = templates.iter().find(|(known, _)| known == wanted) {
            return Ok(Self::new(source, &config)?);
        }
        let known: Vec<&str> = templates.iter().map(|(known, _)| known.as_str()).collect();
        Err(if known.is_empty() {
            GenerateError::NoChatTemplate
        } else {
            GenerateError::ChatTemplateName { name: wanted.to_owned(), known: known.join(", ") }
        }
        .into())
    }

    /// The conversation in the model's notation.
    ///
    /// # Errors
    /// [`GenerateError::ChatRefused`] when the template raises an exception, for example because the model knows no system
    /// role; [`GenerateError::ChatTemplate`] when it breaks.
    pub fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String, GenerateError> {
        let clock = options
            .unix_time
            .map(jiff::Timestamp::from_second)
            .transpose()
            .map_err(|error| GenerateError::ChatTemplate { line: None, reason: format!("unix_time: {error}") })?;
        let variables = options.variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let own = [
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", strftime_now(clock)),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let context = Value::from_pairs(self.special_tokens.iter().cloned().chain(variables).chain(own));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| describe(&error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// ChatML with a default system prompt, in the manner of SmolLM2.
    const CHATML_DEFAULT_SYSTEM: &str = "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}\
        {{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}\
        {{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    /// Headers, trimmed content and a date, in the manner of Llama 3.
    const HEADERS: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

    /// Alternating roles enforced, system prompt inside the first turn, in the manner of Llama 2 and Mistral.
    const INST: &str = r#"{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
{{ ' '  + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}"#;

    /// Tools, reasoning stripped by `split`, a switch variable, in the manner of Qwen.
    const QWEN: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content }}
    {%- if loop.index0 == ns.last and message.role == "user" and message.content.startswith('/') %}
        {{- ' (command)' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    fn config() -> TokenizerConfig {
        TokenizerConfig {
            bos_token: Some("<s>".to_owned()),
            eos_token: Some("</s>".to_owned()),
            ..TokenizerConfig::default()
        }
    }

    fn talk() -> Vec<ChatMessage> {
        vec![
            ChatMessage::user(" Hi é "),
            ChatMessage::assistant("<think>\nhm\n</think>\n\nHello!"),
            ChatMessage::user("/time <b>"),
        ]
    }

    fn render(source: &str, messages: &[ChatMessage], options: &ChatOptions) -> Result<String, GenerateError> {
        ChatTemplate::new(source, &config()).unwrap().render(messages, options)
    }

    fn with_system() -> Vec<ChatMessage> {
        let mut messages = vec![ChatMessage::system("Be brief.")];
        messages.extend(talk());
        messages
    }

    /// Each expectation was made with Jinja2 3.1.6 and transformers' settings.
    #[test]
    fn templates_in_use_render_as_in_transformers() {
        let open = ChatOptions { unix_time: Some(0), ..ChatOptions::default() };
        let closed = ChatOptions { add_generation_prompt: false, ..open.clone() };
        let thinking = ChatOptions {
            variables: BTreeMap::from([
                ("enable_thinking".to_owned(), serde_json::json!(false)),
                ("tools".to_owned(), serde_json::json!([{"name": "now", "args": []}])),
            ]),
            ..open.clone()
        };
        let cases = [
            (
                CHATML_DEFAULT_SYSTEM,
                talk(),
                &open,
                "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n Hi é <|im_end|>\n\
                <|im_start|>assistant\n<think>\nhm\n</think>\n\nHello!<|im_end|>\n<|im_start|>user\n\
                /time <b><|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                CHATML_DEFAULT_SYSTEM,
                with_system(),
                &closed,
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi é <|im_end|>\n\
                <|im_start|>assistant\n<think>\nhm\n</think>\n\nHello!<|im_end|>\n<|im_start|>user\n\
                /time <b><|im_end|>\n",
            ),
            (
                HEADERS,
                with_system(),
                &open,
                "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Jan 1970\n\n\
                Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
                Hi é<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\n\
                Hello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
                /time <b><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                INST,
                with_system(),
                &closed,
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi é [/INST]\n <think>\nhm\n</think>\n\n\
                Hello! </s>\n<s>[INST] /time <b> [/INST]\n",
            ),
            (
                QWEN,
                talk(),
                &open,
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\
                \x20Hi é <|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n\
                /time <b> (command)<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                QWEN,
                talk(),
                &thinking,
                "<|im_start|>system\n# Tools\n{\"name\": \"now\", \"args\": []}<|im_end|>\n\
                <|im_start|>user\n Hi é <|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n\
                <|im_start|>user\n/time <b> (command)<|im_end|>\n<|im_start|>assistant\n<think>\n\n\
                </think>\n\n",
            ),
        ];
        for (source, messages, options, expected) in cases {
            assert_eq!(render(source, &messages, options).unwrap(), expected);
        }
    }

    #[test]
    fn a_template_may_refuse() {
        let twice = [ChatMessage::user("a"), ChatMessage::user("b")];
        assert_eq!(
            render(INST, &twice, &ChatOptions::default()).unwrap_err().to_string(),
            "the model's chat template refuses this conversation: Conversation roles must alternate \
             user/assistant/user/assistant/..."
        );
    }

    #[test]
    fn an_empty_conversation_is_no_panic() {
        assert_eq!(render(CHATML_DEFAULT_SYSTEM, &[], &ChatOptions::default()).unwrap(), "<|im_start|>assistant\n");
        assert_eq!(
            render(INST, &[], &ChatOptions::default()).unwrap_err().to_string(),
            "chat template, line 1: undefined value: `messages[0]` is undefined"
        );
    }

    #[test]
    fn the_template_is_found_where_the_model_has_it() {
        type Files<'a> = &'a [(&'a str, &'a str)];
        let load = |files: Files, name: Option<&str>| {
            ChatTemplate::load(
                |wanted| {
                    let file = files.iter().find(|(name, _)| *name == wanted);
                    Ok::<_, GenerateError>(file.map(|(_, content)| content.as_bytes().to_vec()))
                },
                name,
            )
            .and_then(|template| template.render(&[], &ChatOptions::default()))
            .map_err(|error| error.to_string())
        };
        let single = ("tokenizer_config.json", r#"{"chat_template": "one {{ eos_token }}", "eos_token": "E"}"#);
        let several = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}"#,
        );
        let own = ("chat_template.jinja", "own {{ eos_token }}\n");
        assert_eq!(load(&[single], None), Ok("one E".to_owned()));
        assert_eq!(load(&[single, own], None), Ok("own E".to_owned()));
        assert_eq!(load(&[several], Some("rag")), Ok("r".to_owned()));
        assert_eq!(
            load(&[several], None),
            Err("there is no chat template named \"default\": the model has rag, tool_use".to_owned())
        );
        let none = "the model has no chat template: neither chat_template.jinja nor `chat_template` in tokenizer_config.json; \
                    it is probably a base model: use `generate` with a plain prompt, or give a template file";
        assert_eq!(load(&[], None), Err(none.to_owned()));
        assert_eq!(load(&[("tokenizer_config.json", "{}")], None), Err(none.to_owned()));
    }
}
