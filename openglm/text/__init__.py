"""Text level: messages, tokenizer, chat template, incremental detokenizer, turn parser. No torch here."""
