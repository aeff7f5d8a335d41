"""The form of a conversation, written down once: as the table that `chat.render` follows and as a jinja template.

    <|begin_of_text|> <|user|> text <|end|> <|document|> text <|end|>
    <|assistant|> text <|tool_call|> expression <|end|> <|tool_result|> text <|end|> <|assistant|> text <|end|> …

Nothing stands between a control token and the text beside it. The template is for transformers, vLLM and others; the
`generation` markers give transformers the mask of the assistant's own tokens, the stop token `<|end|>` among them.
"""

# Which control token opens the turn of each role.
TURN_TOKENS = {
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "document": "<|document|>",
    "tool": "<|tool_result|>",
}

CHAT_TEMPLATE = """\
{#- Written by groundup. Messages: {"role": "system"|"user"|"assistant"|"document"|"tool", "content": text};
    an assistant message may have a "tool_call": text, to be answered by a "tool" message. -#}
{{- bos_token -}}
{%- set turn_tokens = {
    'system': '<|system|>', 'user': '<|user|>', 'document': '<|document|>', 'tool': '<|tool_result|>'
} -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
            {{- message['content'] -}}
            {%- if message['tool_call'] is defined and message['tool_call'] is not none -%}
                {{- '<|tool_call|>' + message['tool_call'] -}}
            {%- endif -%}
            {{- '<|end|>' -}}
        {%- endgeneration -%}
    {%- elif message['role'] in turn_tokens -%}
        {{- turn_tokens[message['role']] + message['content'] + '<|end|>' -}}
    {%- else -%}
        {{- raise_exception('unknown role ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
