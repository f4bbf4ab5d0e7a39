"""How functions of another package are replaced and put back."""
