"""What is trained? The adapter of a domain: plain LoRA layers of PEFT, described, started and listed."""
