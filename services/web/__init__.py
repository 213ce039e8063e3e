"""What both HTTP services share: problem documents, tokens with scopes, a limit on the body's length."""
