"""What both web applications share: problem documents, tokens, body limits."""
