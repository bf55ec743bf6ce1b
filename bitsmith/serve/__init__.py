"""`bitsmith serve`: a server that other programs talk to in OpenAI's and Anthropic's forms."""
