"""The five services and the kit they share. No service imports another: they meet over `lares`."""
